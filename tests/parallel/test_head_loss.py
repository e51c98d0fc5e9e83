"""Head and cross-entropy in blocks of tokens, against plain torch in float64: any blocks, one rank and two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engine.mesh import Axis
from engine.parallel.cross_entropy import LossTerms
from engine.parallel.head_loss import Share, _rows, head_loss
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import EMBEDDING, Init, parameter, share, vocabulary_rows
from tests.ops.witness import draw
from tests.ranks import run_ranks

B, S, H, VOCAB = 2, 6, 5, 13
TARGETS = (torch.arange(B * S) * 5 % VOCAB).view(B, S)
MASK = (torch.arange(B * S) % 4 > 0).float().view(B, S)
FACTOR, GRADIENT = torch.tensor(1 / 7, dtype=torch.float64), torch.tensor(8.0)
TERMS = LossTerms(VOCAB, 0.1, 1e-2)
BLOCKS_MB = [0.0, 1e-6, 5 * VOCAB * 8 / 2**20, 7 * VOCAB * 8 / 2**20]  # all tokens, one, five, seven (6 + 6)


def plain(x_bsh: Tensor, head_vh: Tensor, terms: LossTerms = TERMS) -> Tensor:
    logits = (x_bsh @ head_vh.t()).flatten(0, 1)
    losses = F.cross_entropy(logits, TARGETS.flatten(), reduction="none", label_smoothing=terms.smoothing)
    losses = losses + terms.z_loss * torch.logsumexp(logits, -1).square()
    return (losses * MASK.flatten()).sum() * FACTOR


def expected(terms: LossTerms = TERMS) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, and the gradients of x and head times GRADIENT."""
    x, head = draw(1, B, S, H).requires_grad_(), draw(2, VOCAB, H).requires_grad_()
    loss = plain(x, head, terms)
    loss.backward(GRADIENT.double())
    assert x.grad is not None
    assert head.grad is not None
    return loss.detach(), x.grad, head.grad


def layer(axis: Axis, dtype: torch.dtype, *, sequence_parallel: bool = False) -> tuple[TensorParallel, nn.Parameter]:
    """Return what a rank of `axis` holds of the head."""
    tp = TensorParallel(axis, sequence_parallel, dtype, torch.device("cpu"))
    head = parameter([vocabulary_rows("head.weight", (VOCAB, H), Init(), axis, EMBEDDING)], dtype, tp.device)
    with torch.no_grad():
        head.copy_(draw(2, VOCAB, H)[slice(*share(VOCAB, axis))])
    return tp, head


ALONE = Axis("tp", 1, 0, None, (0,))


@pytest.mark.parametrize("block_mb", BLOCKS_MB)
@pytest.mark.parametrize("terms", [LossTerms(VOCAB), TERMS], ids=["plain", "smoothed"])
def test_blocks_change_nothing(block_mb: float, terms: LossTerms) -> None:
    tp, head = layer(ALONE, torch.float64)
    x = draw(1, B, S, H).requires_grad_()
    loss = head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=terms, block_mb=block_mb)
    loss.backward(GRADIENT.double())
    for found, wanted in zip((loss, x.grad, head.grad), expected(terms), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


def test_gradients_are_added_to_the_main_gradient_and_reported_once() -> None:
    tp, head = layer(ALONE, torch.float64)
    told: list[str] = []
    head.main_grad = torch.ones(VOCAB, H, dtype=torch.float64)  # type: ignore[attr-defined]
    head.grad_ready = lambda: told.append("ready")  # type: ignore[attr-defined]
    x = draw(1, B, S, H).requires_grad_()
    loss = head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=TERMS, block_mb=1e-6)
    assert told == []
    loss.backward(GRADIENT.double())
    assert told == ["ready"]
    assert head.grad is None
    torch.testing.assert_close(head.main_grad - 1, expected()[2], rtol=1e-12, atol=1e-13)


def test_evaluation_leaves_gradients_alone() -> None:
    tp, head = layer(ALONE, torch.float64)
    head.main_grad = torch.zeros(VOCAB, H, dtype=torch.float64)  # type: ignore[attr-defined]
    with torch.no_grad():
        loss = head_loss(draw(1, B, S, H), head, TARGETS, Share(MASK, FACTOR), tp, terms=TERMS)
    torch.testing.assert_close(loss, expected()[0], rtol=1e-13, atol=0)
    assert not loss.requires_grad
    assert not head.main_grad.any()


def test_a_frozen_head_learns_nothing() -> None:
    tp, head = layer(ALONE, torch.float64)
    told: list[str] = []
    head.main_grad, head.grad_ready = torch.zeros(VOCAB, H), lambda: told.append("ready")  # type: ignore[attr-defined]
    head.requires_grad_(False)
    x = draw(1, B, S, H).requires_grad_()
    head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=TERMS).backward(GRADIENT.double())
    torch.testing.assert_close(x.grad, expected()[1], rtol=1e-13, atol=1e-14)
    assert not head.main_grad.any()
    assert told == []


def test_a_head_learns_from_frozen_layers() -> None:
    tp, head = layer(ALONE, torch.float64)
    x = draw(1, B, S, H)
    head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=TERMS).backward(GRADIENT.double())
    torch.testing.assert_close(head.grad, expected()[2], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("label", [-100, -1, VOCAB])
def test_labels_outside_the_vocabulary_must_be_masked(label: int) -> None:
    tp, head = layer(ALONE, torch.float64)
    x, targets = draw(1, B, S, H), TARGETS.clone()
    targets[MASK == 0] = label
    loss = head_loss(x, head, targets, Share(MASK, FACTOR), tp, terms=TERMS)
    torch.testing.assert_close(loss, expected()[0], rtol=1e-13, atol=0)
    for mask in (None, torch.ones_like(MASK)):
        with pytest.raises(RuntimeError, match="a label is outside the vocabulary of 13 tokens, and not masked"):
            head_loss(x, head, targets, Share(mask, FACTOR), tp, terms=TERMS)


def test_masked_tokens_may_overflow() -> None:
    tp, head = layer(ALONE, torch.float64)
    x = draw(1, B, S, H)
    x[MASK == 0] = 1e308
    x.requires_grad_()
    loss = head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=TERMS)
    loss.backward(GRADIENT.double())
    for found, wanted in zip((loss, x.grad, head.grad), expected(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, S), (B, 0)])
@pytest.mark.parametrize("trains", [True, False])
def test_no_tokens_have_no_loss(shape: tuple[int, int], trains: bool) -> None:
    tp, head = layer(ALONE, torch.float64)
    x, targets = torch.zeros(*shape, H, dtype=torch.float64, requires_grad=True), torch.zeros(shape, dtype=torch.int64)
    with torch.set_grad_enabled(trains):
        loss = head_loss(x, head, targets, Share(None, FACTOR, GRADIENT), tp, terms=TERMS)
    assert loss.item() == 0
    if trains:
        loss.backward(GRADIENT.double())
        assert head.grad is not None
        assert not head.grad.any()


@pytest.mark.parametrize("count", [S - 1, S + 1])
def test_labels_of_other_tokens_are_refused(count: int) -> None:
    tp, head = layer(ALONE, torch.float64)
    with pytest.raises(ValueError, match=f"{count} labels for {S} tokens"):
        head_loss(draw(1, 1, S, H), head, TARGETS.flatten()[None, :count], Share(None, FACTOR), tp, block_mb=1e-6)


def test_a_mask_does_not_change_the_dtype() -> None:
    tp, head = layer(ALONE, torch.float32)
    x = draw(1, B, S, H).float()
    loss = head_loss(x, head, TARGETS, Share(MASK.double(), FACTOR), tp, terms=TERMS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected()[0].item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_operands_are_multiplied_and_summed_in_float32(dtype: torch.dtype) -> None:
    """Only the operands and the gradient of x are rounded: the head's gradient is as exact as float32."""
    tp, head = layer(ALONE, dtype)
    head.main_grad, head.grad_ready = torch.zeros(VOCAB, H), lambda: None  # type: ignore[attr-defined]
    x = draw(1, B, S, H).to(dtype).requires_grad_()
    loss = head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=TERMS, block_mb=1e-6)
    loss.backward(GRADIENT)
    wide_x, wide_head = x.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    wanted = plain(wide_x, wide_head)
    wanted.backward(GRADIENT.double())
    assert x.grad is not None
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(head.main_grad.double(), wide_head.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), wide_x.grad, rtol=torch.finfo(dtype).eps, atol=1e-3)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_more_logits_are_held_than_allowed() -> None:
    tp, head = layer(ALONE, torch.float64)
    x = draw(1, B, S, H).requires_grad_()
    with Largest() as seen:
        share_ = Share(MASK, FACTOR, GRADIENT)
        head_loss(x, head, TARGETS, share_, tp, terms=TERMS, block_mb=5 * VOCAB * 8 / 2**20).backward(GRADIENT.double())
    assert seen.elements == VOCAB * H  # the head's gradient; all logits would be 156, blocks of five 65
    with Largest() as seen:
        head_loss(x, head, TARGETS, share_, tp, terms=TERMS, block_mb=0.0).backward(GRADIENT.double())
    assert seen.elements == B * S * VOCAB


@given(tokens=st.integers(0, 5000), row_bytes=st.integers(1, 10**6), block_mb=st.floats(0, 64))
def test_blocks_are_as_few_as_may_be(tokens: int, row_bytes: int, block_mb: float) -> None:
    rows = _rows(tokens, row_bytes, block_mb)
    most = max(1, int(block_mb * 2**20) // row_bytes) if block_mb else max(1, tokens)
    assert 1 <= rows <= most
    assert -(-tokens // rows) == -(-tokens // most)


def on_ranks(rank: int, world: int, sequence_parallel: bool, block_mb: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the loss, my gradient of x (under SP: of my shard) and my rows of the head's gradient."""
    axis = Axis("tp", world, rank, torch.distributed.group.WORLD, tuple(range(world)))
    tp, head = layer(axis, torch.float64, sequence_parallel=sequence_parallel)
    x = tp.local_sequence(draw(1, B, S, H)).clone().requires_grad_()
    loss = head_loss(x, head, TARGETS, Share(MASK, FACTOR, GRADIENT), tp, terms=TERMS, block_mb=block_mb)
    loss.backward(GRADIENT.double())
    assert x.grad is not None
    assert head.grad is not None
    return loss.item(), x.grad.numpy(), head.grad.numpy()


@pytest.mark.parametrize("block_mb", [0.0, 3 * 7 * 8 / 2**20])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_ranks(sequence_parallel: bool, block_mb: float) -> None:
    loss, dx, dhead = expected()
    told = run_ranks(2, on_ranks, sequence_parallel, block_mb)
    assert [found for found, _, _ in told] == pytest.approx([loss.item()] * 2, rel=1e-13)
    for rank, (_, found, _) in enumerate(told):
        wanted = dx.chunk(2, dim=1)[rank] if sequence_parallel else dx
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-13)
    np.testing.assert_allclose(np.concatenate([found for _, _, found in told]), dhead.numpy(), atol=1e-13)
