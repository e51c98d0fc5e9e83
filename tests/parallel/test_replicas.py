"""Replicated parameters never drift apart: copies over tp, dp and the two ends of a tied model stay bitwise equal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.layouts import GPT, LLAMA, assemble, make_config, train_layout
from tests.ranks import run_ranks

CASES: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("norms-and-biases-over-tp-dp", GPT, {"tp": 2, "sequence_parallel": True}, 4),
    ("norms-and-biases-without-sp", GPT, {"tp": 2}, 2),
    ("shared-kv-heads", {**LLAMA, "qk_norm": True}, {"tp": 4, "sequence_parallel": True}, 4),
    ("tied-ends-of-a-pipeline", {**LLAMA, "tied_embeddings": True}, {"pp": 2}, 4),
]


@pytest.mark.parametrize(("model", "parallel", "world"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_copies_are_bitwise_equal_after_50_steps(model: dict[str, Any], parallel: dict[str, Any], world: int) -> None:
    config = make_config(model={**model, "layers": 2}, parallel=parallel, precision={"dtype": "fp32"})
    results = run_ranks(world, train_layout, config, 50)
    assemble(results)  # compares every copy of every element
    assert results[0]["losses"][-1] != results[0]["losses"][0]
    held = [piece.name for result in results for piece, _ in result["pieces"]]
    assert held.count("final_norm.weight") > 1, "nothing was replicated: the comparison would be empty"
