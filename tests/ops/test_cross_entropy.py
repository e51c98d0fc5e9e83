"""The local halves of cross-entropy, joined over two parts of a vocabulary, against torch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.ops.cross_entropy import ce_grad_, ce_stats
from tests.ops.witness import SIZES, check, draw

pytestmark = pytest.mark.usefixtures("each_backend")


def in_parts(logits: Tensor, targets: Tensor, edge: int) -> Tensor:
    """Return the losses, with the vocabulary cut at `edge` as two tensor-parallel ranks hold it."""

    class Parts(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            vocab = logits.shape[1]
            parts = [(logits[:, a:b].clone(), a) for a, b in ((0, edge), (edge, vocab)) if b > a]
            stats = [ce_stats(part, targets, start) for part, start in parts]
            largest = torch.stack([s[0] for s in stats]).amax(0)
            log_sum = torch.log(torch.stack([s[1] * (s[0] - largest).exp() for s in stats]).sum(0))
            ctx.parts, ctx.rows = parts, (largest, log_sum)
            return log_sum + (largest - torch.stack([s[2] for s in stats]).sum(0))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            parts = [part.clone() for part, _ in ctx.parts]  # gradcheck comes here more than once
            for part, (_, start) in zip(parts, ctx.parts, strict=True):
                largest, log_sum = ctx.rows
                grad = ce_grad_(part, targets, start, largest, log_sum, grads[0])
                assert part.data_ptr() == grad.data_ptr(), "the gradient must overwrite the logits"
            return torch.cat(parts, dim=1)

    return Parts.apply(logits)


@given(rows=st.sampled_from([0, 1, 2, 70]), vocab=SIZES, cut=st.floats(0, 1), scale=st.sampled_from([1.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_cross_entropy_in_two_parts_of_the_vocabulary(rows: int, vocab: int, cut: float, scale: float) -> None:
    targets = torch.arange(rows) * 7 % vocab
    edge = min(vocab - 1, int(cut * vocab))
    check(
        lambda logits: in_parts(logits, targets, edge),
        lambda logits: F.cross_entropy(logits, targets, reduction="none"),
        draw(1, rows, vocab, scale=scale),
    )


def test_gradcheck() -> None:
    targets = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda l: in_parts(l, targets, 3), (draw(1, 3, 5).requires_grad_(),))


def test_bf16_logits_have_float32_statistics_and_one_rounding() -> None:
    logits, targets = draw(1, 20, 50, scale=3).bfloat16(), torch.arange(20)
    wide = logits.double().requires_grad_()
    truth = F.cross_entropy(wide, targets, reduction="none")
    truth.sum().backward()
    largest, total, target, _ = ce_stats(logits, targets, 0)
    assert largest.dtype == total.dtype == target.dtype == torch.float32
    torch.testing.assert_close((total.log() + (largest - target)).double(), truth.detach(), rtol=1e-5, atol=1e-5)
    grad = ce_grad_(logits, targets, 0, largest, total.log(), torch.ones(20))
    assert grad.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(grad.double(), wide.grad, rtol=2**-8, atol=1e-6)


def test_confident_rows_keep_their_digits() -> None:
    """The loss of a target that is far ahead, and its gradient, are not rounded away at large logits."""
    logits = torch.tensor([[1000.0, 990.0, 980.0]])
    exact = F.cross_entropy(logits.double(), torch.tensor([0])).item()
    largest, total, target, _ = ce_stats(logits, torch.tensor([0]), 0)
    assert (total.log() + (largest - target)).item() == pytest.approx(exact, rel=1e-2)
    grad = ce_grad_(logits, torch.tensor([0]), 0, largest, total.log(), torch.ones(1))
    assert grad[0, 1].item() == pytest.approx(torch.tensor([0.0, -10.0, -20.0]).double().softmax(0)[1].item(), rel=1e-5)


def test_nan_is_passed_on() -> None:
    logits = draw(1, 2, 40).float()
    logits[0, 3] = float("nan")
    largest, total, *_ = ce_stats(logits, torch.tensor([1, 2]), 0)
    assert torch.isnan(largest[0] + torch.log(total[0]))
    assert torch.isfinite(largest[1] + torch.log(total[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_scale_0_become_zeros(dtype: torch.dtype) -> None:
    logits, targets = draw(1, 3, 40).to(dtype), torch.tensor([1, 2, 3])
    logits[1, 7] = float("nan")
    largest, total, *_ = ce_stats(logits, targets, 0)
    grad = ce_grad_(logits, targets, 0, largest, total.log(), torch.tensor([1.0, 0.0, 1.0]), z_loss=1e-3)
    assert torch.equal(grad[1], torch.zeros(40, dtype=dtype))
    assert grad[::2].isfinite().all()
    assert (grad[::2] != 0).any(dim=1).all()


@pytest.mark.parametrize(("vocab", "masked"), [(40, 15), (5000, 3000)], ids=["short", "longer than a chunk"])
def test_masked_logits_take_no_part(vocab: int, masked: int) -> None:
    """They are -inf, be they the first of a row or all that a rank of tp holds."""
    logits, targets = draw(1, 2, vocab), torch.tensor([vocab - 1, masked])
    logits[:, :masked] = float("-inf")
    for edge in (masked, masked + 7):
        losses = in_parts(logits, targets, edge)
        torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-12, atol=0)
    largest, total, *_ = ce_stats(logits[:, :masked].contiguous(), targets, 0)
    assert (largest == float("-inf")).all()
    assert (total == 0).all()
    logits[0, 3] = float("nan")
    assert torch.isnan(ce_stats(logits, targets, 0)[1][0])


def test_wrong_targets_are_refused(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch refuses them in its own words")
    with pytest.raises(RuntimeError, match="one int64 target a row"):
        ce_stats(torch.ones(2, 4), torch.ones(3, dtype=torch.int64), 0)
    with pytest.raises(RuntimeError, match="one int64 target a row"):
        ce_stats(torch.ones(2, 4), torch.ones(2, dtype=torch.int32), 0)
