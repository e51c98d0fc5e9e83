"""The copy that a save takes: all of the state, in as few pieces as it lies in memory."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.shard import _joined


@given(cuts=st.lists(st.integers(1, 39), unique=True), order=st.randoms(use_true_random=False), shuffled=st.booleans())
def test_neighbours_are_copied_as_one(cuts: list[int], order: object, shuffled: bool) -> None:
    whole = torch.arange(40.0)
    parts = list(whole.tensor_split(sorted(cuts)))
    if shuffled:
        order.shuffle(parts)  # type: ignore[attr-defined]
    runs = list(_joined(parts))
    assert torch.equal(torch.cat([run.flatten() for run in runs]), torch.cat(parts))
    gaps = sum(a.storage_offset() + a.numel() != b.storage_offset() for a, b in itertools.pairwise(parts))
    assert len(runs) == 1 + gaps


def test_what_is_not_one_stretch_is_copied_alone() -> None:
    base, other = torch.arange(24.0), torch.arange(24.0)
    parts = [base[:4], base[4:12].view(4, 2).t(), base[12:16], other[16:20], base[20:].double(), base[16:20].view(2, 2)]
    runs = list(_joined(parts))
    assert len(runs) == len(parts)
    assert all(torch.equal(run.flatten(), part.flatten()) for run, part in zip(runs, parts, strict=True))
    assert list(_joined([])) == []
