"""Buckets of all tp ranks reduce the same things in the same order, whatever each of them holds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from engine.mesh import Axis
from engine.models.transformer import Chunk
from engine.parallel.buckets import Buckets
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import VECTOR
from tests.layouts import GPT, LLAMA, VOCAB, make_config

ALONE = Axis("one", 1, 0, None, (0,))


def reductions(rank: int, tp: int, model: dict[str, Any], elements: int) -> list[tuple[int, str, int]]:
    """Return (bucket, axis, length) of every reduction that this rank of tp starts."""
    config = make_config(model=model).model
    axis = Axis("tp", tp, rank, None, tuple(range(tp)))
    shared = tp // (config.kv_heads or config.heads)
    kv_axis = Axis("kv", shared, rank % shared, None, tuple(range(shared))) if shared > 1 else ALONE
    parallel = TensorParallel(axis, True, torch.float64, torch.device("meta"))
    chunk = Chunk(config, VOCAB, (0, config.layers), parallel, kv_axis=kv_axis, embedding_axis=ALONE)
    weights = dict.fromkeys(chunk.parameters(), 1)
    buckets = Buckets(
        weights, weights, dp=ALONE, bucket_bytes=8 * elements, main_dtype=torch.float64, overlap=True,
        decays=lambda piece: piece.kind != VECTOR,
    )  # fmt: skip
    return [
        (number, run.reduce.name, run.stop - run.start)
        for number, bucket in enumerate(buckets.buckets)
        for run in bucket.runs
        if run.reduce is not None
    ]


@pytest.mark.parametrize("model", [LLAMA, GPT], ids=["llama", "gpt"])
@pytest.mark.parametrize("tp", [2, 4])
def test_every_rank_of_tp_reduces_the_same(model: dict[str, Any], tp: int) -> None:
    for elements in range(100, 1400, 20):
        told = [reductions(rank, tp, model, elements) for rank in range(tp)]
        assert told[0], "sequence parallelism sums the gradients of norms"
        assert all(a == b for a, b in itertools.pairwise(told)), f"buckets of {elements} elements"
