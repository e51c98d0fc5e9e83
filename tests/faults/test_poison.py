"""Poisoned samples are spoilt wherever they are asked for, and the others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.data.indexed import IndexedDataset, IndexedWriter
from engine.data.samples import Samples
from engine.data.split import make_split
from engine.faults.plan import read_plan
from engine.faults.poison import PoisonedSamples

VOCAB = 90


@pytest.mark.parametrize("how", ["random", "repeat", "shift"])
def test_only_the_named_samples_are_spoilt(tmp_path: Path, how: str) -> None:
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for start in range(20):
            writer.add((np.arange(12) + start * 7) % VOCAB)
    split = make_split(IndexedDataset(tmp_path / "c"), "train", [90, 10, 0], 8)
    assert split is not None
    healthy = Samples([split], [1.0], 5, VOCAB)
    plan = read_plan([{"what": "poison", "first": 2, "stop": 4, "how": how}])
    poisoned, again = PoisonedSamples(healthy, plan), PoisonedSamples(healthy, plan)
    for index in range(6):
        same = np.array_equal(poisoned[index].window, healthy[index].window)
        assert same == (index not in (2, 3)), index
        assert np.array_equal(poisoned[index].window, again[index].window)
        assert 0 <= poisoned[index].window.min() <= poisoned[index].window.max() < VOCAB
    assert poisoned.per_epoch == healthy.per_epoch
