"""Look-ups: torch's values and gradients, and sums that 16-bit weights do not round away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.ops.embedding import lookup
from tests.ops.witness import check, draw


def test_values_and_gradients_are_torchs() -> None:
    index = torch.tensor([[3, 0, 3], [6, 3, 0]])
    check(lambda table: lookup(table, index), lambda table: nn.functional.embedding(index, table), draw(1, 7, 5))


def test_a_frequent_token_is_summed_in_the_main_gradient() -> None:
    """4096 gradients of 1/64 are 64; a bf16 sum stops growing at 4."""
    table = nn.Parameter(torch.zeros(3, 2, dtype=torch.bfloat16))
    arrived: list[Tensor] = []
    table.main_grad = torch.zeros(3, 2)  # type: ignore[attr-defined]
    table.grad_ready = lambda: arrived.append(table)  # type: ignore[attr-defined]
    index = torch.ones(8, 512, dtype=torch.int64)
    lookup(table, index).backward(torch.full((8, 512, 2), 1 / 64, dtype=torch.bfloat16))
    assert table.main_grad.tolist() == [[0, 0], [64, 64], [0, 0]]  # type: ignore[attr-defined]
    assert len(arrived) == 1
    assert table.grad is None
