"""Every file of conf/objective/ is an objective that can be built, and says what was published."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine.config import DataConfig, ObjectiveConfig
from engine.objectives.choose import PUBLISHED, make_objective
from tests.objectives.words import Words

CONF = Path(__file__).resolve().parents[2] / "conf" / "objective"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))


def chosen(choice: str) -> ObjectiveConfig:
    """Return what a file of conf/objective/ chooses."""
    read = yaml.safe_load((CONF / f"{choice}.yaml").read_text())
    return ObjectiveConfig(**read.get("objective", read))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_makes_examples_of_the_right_length(choice: str) -> None:
    import numpy as np

    objective = make_objective(chosen(choice), DataConfig(seq_len=96), 1, Words())
    window = np.arange(100, 101 + objective.stride)
    example = objective(window, np.array([40]), 3)
    assert len(example.tokens) == len(example.labels) == 96
    assert example.loss_mask is None or 0 < example.loss_mask.sum() <= 96


def test_there_is_a_choice_for_every_objective() -> None:
    assert set(PUBLISHED) <= set(CHOICES)
