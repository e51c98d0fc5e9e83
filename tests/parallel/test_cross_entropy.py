"""Vocabulary-parallel cross-entropy with label smoothing and z-loss, against torch in float64, on one rank and two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.mesh import Axis
from engine.parallel.cross_entropy import LossTerms, vocab_parallel_cross_entropy
from engine.parallel.sharding import share
from tests.ops.witness import check, check_bf16, draw
from tests.ranks import run_ranks

ROWS, VOCAB = 6, 13
ALONE = Axis("tp", 1, 0, None, (0,))
TERMS = [LossTerms(), LossTerms(VOCAB, 0.1), LossTerms(z_loss=1e-2), LossTerms(VOCAB, 0.2, 1e-3)]
TARGETS = torch.arange(ROWS) * 5 % VOCAB


def plain(logits: Tensor, terms: LossTerms) -> Tensor:
    losses = F.cross_entropy(logits, TARGETS, reduction="none", label_smoothing=terms.smoothing)
    return losses + terms.z_loss * torch.logsumexp(logits, -1).square()


@pytest.mark.parametrize("terms", TERMS)
def test_one_rank(terms: LossTerms) -> None:
    def ours(logits: Tensor) -> Tensor:
        return vocab_parallel_cross_entropy(logits.clone(), TARGETS, 0, ALONE, terms)

    for scale in (1.0, 30.0):
        check(ours, lambda logits: plain(logits, terms), draw(1, ROWS, VOCAB, scale=scale), slack=16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    def ours(logits: Tensor) -> Tensor:
        return vocab_parallel_cross_entropy(logits.clone(), TARGETS, 0, ALONE, TERMS[3]).to(dtype)

    check_bf16(ours, lambda logits: plain(logits, TERMS[3]), draw(1, ROWS, VOCAB), dtype=dtype)


def on_ranks(rank: int, world: int, terms: LossTerms) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses and my columns of the gradient."""
    axis = Axis("tp", world, rank, torch.distributed.group.WORLD, tuple(range(world)))
    start, stop = share(VOCAB, axis)
    logits = draw(1, ROWS, VOCAB)[:, start:stop].clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(logits.clone(), TARGETS, start, axis, terms)
    losses.backward(torch.linspace(1, 2, ROWS, dtype=torch.float64))
    assert logits.grad is not None
    return losses.detach().numpy(), logits.grad.numpy()


@pytest.mark.parametrize("terms", TERMS)
def test_two_ranks(terms: LossTerms) -> None:
    logits = draw(1, ROWS, VOCAB).requires_grad_()
    expected = plain(logits, terms)
    expected.backward(torch.linspace(1, 2, ROWS, dtype=torch.float64))
    assert logits.grad is not None
    told: list[Any] = run_ranks(2, on_ranks, terms)
    for losses, _ in told:
        np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([grad for _, grad in told], 1), logits.grad.numpy(), atol=1e-14)
