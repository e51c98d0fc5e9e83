"""Our calls of flash-attn: right arguments and layouts, so that the library gives the reference's numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from engine.ops.libraries import flash
from tests.ops.libraries.standins import modules
from tests.ops.witness import check_bf16, draw
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("libraries")
B, S, HEADS, KV, D = 2, 12, 4, 2, 16


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    out = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias.to(q.dtype), scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return draw(1, B, S, HEADS, D), draw(2, B, S, KV, D), draw(3, B, S, KV, D)


def hide(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, -math.inf)


PLACES = torch.arange(S)
CAUSAL = PLACES[:, None] >= PLACES


def test_causal_attention_with_grouped_heads() -> None:
    check_bf16(
        lambda q, k, v: flash.attention(q, k, v, causal=True), lambda q, k, v: plain_attention(q, k, v, hide(CAUSAL)),
        *qkv(),
    )  # fmt: skip


def test_scale_and_full_attention() -> None:
    check_bf16(
        lambda q, k, v: flash.attention(q, k, v, causal=False, scale=0.5),
        lambda q, k, v: plain_attention(q, k, v, torch.zeros(S, S), 0.5),
        *qkv(),
    )


@pytest.mark.parametrize("window", [1, 3, S])
def test_window_counts_the_query_itself(window: int) -> None:
    visible = CAUSAL & (PLACES[:, None] - PLACES < window)
    check_bf16(
        lambda q, k, v: flash.attention(q, k, v, causal=True, window=window),
        lambda q, k, v: plain_attention(q, k, v, hide(visible)),
        *qkv(),
    )


def test_alibi() -> None:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    bias = hide(CAUSAL) + slopes[:, None, None] * (PLACES - PLACES[:, None])
    check_bf16(
        lambda q, k, v: flash.attention(q, k, v, causal=True, alibi_slopes=slopes),
        lambda q, k, v: plain_attention(q, k, v, bias),
        *qkv(),
    )


def test_softcap() -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(HEADS // KV, dim=2) for x in (k, v))
        scores = 2.0 * torch.tanh(torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(D) / 2.0)
        return torch.einsum("bhij,bjhd->bihd", (scores + hide(CAUSAL).to(q.dtype)).softmax(-1), v)

    check_bf16(lambda q, k, v: flash.attention(q, k, v, causal=True, softcap=2.0), plain, *qkv())


def test_no_query_sees_another_document() -> None:
    documents_bs = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2], [2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3]])
    documents = flash.Documents.of(documents_bs)
    assert documents.bounds.tolist() == [0, 5, 6, 12, 15, 24]  # row 1 begins anew although the number goes on
    same = documents_bs[:, None, :, None] == documents_bs[:, None, None, :]
    check_bf16(
        lambda q, k, v: flash.attention(q, k, v, causal=True, documents=documents),
        lambda q, k, v: plain_attention(q, k, v, hide(same & CAUSAL)),
        *qkv(),
    )


def test_slices_of_one_projection_are_taken_as_they_are() -> None:
    packed = draw(4, B, S, (HEADS + 2 * KV) * D).bfloat16().view(B, S, -1, D)
    q, k, v = packed.split((HEADS, KV, KV), dim=2)
    documents = flash.Documents(torch.tensor([0, S, 2 * S], dtype=torch.int32), S)
    together = flash.attention(q, k, v, causal=True)
    assert torch.equal(flash.attention(q, k, v, causal=True, documents=documents), together)
    assert torch.equal(flash.attention(*(x.contiguous() for x in (q, k, v)), causal=True), together)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("turned", [D, D // 2])
def test_rotation(interleaved: bool, per_sequence: bool, turned: int) -> None:
    """Against multiplication by complex numbers; turning back restores, in place and on a slice too."""
    angle = draw(5, *((B, S) if per_sequence else (S,)), turned // 2).float()
    x = draw(6, B, S, HEADS + KV, D).float()[:, :, :HEADS]
    before = x.clone()
    parts = x[..., :turned].unflatten(-1, (-1, 2) if interleaved else (2, -1)).double()
    a, b = parts.unbind(-1 if interleaved else -2)
    complex_angle = torch.polar(torch.ones_like(angle), angle).to(torch.complex128).unsqueeze(-2)
    product = torch.view_as_real(torch.complex(a, b) * complex_angle)
    expected = product.flatten(-2) if interleaved else product.transpose(-1, -2).flatten(-2)
    cos, sin = angle.cos(), angle.sin()
    y = flash.rotate(x, cos, sin, interleaved=interleaved)
    torch.testing.assert_close(y[..., :turned], expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(y[..., turned:], x[..., turned:])
    assert torch.equal(x, before)
    assert flash.rotate(x, cos, sin, interleaved=interleaved, inplace=True) is x
    assert torch.equal(x, y)
    flash.rotate(x, cos, sin, interleaved=interleaved, inplace=True, back=True)
    torch.testing.assert_close(x, before, rtol=1e-5, atol=1e-5)


def plain_loss(logits: Tensor, targets: Tensor, smoothing: float, z_loss: float) -> Tensor:
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return losses + z_loss * logits.logsumexp(-1).square()


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 1e-2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_writes_the_gradient_over_the_logits(smoothing: float, z_loss: float, dtype: torch.dtype) -> None:
    logits = draw(7, 5, 11, scale=3.0).to(dtype)
    targets, weights = torch.tensor([0, 10, 3, 3, 7]), torch.linspace(0.5, 2, 5)
    truth = logits.double().requires_grad_()
    expected = plain_loss(truth, targets, smoothing, z_loss)
    (gradient,) = torch.autograd.grad(expected, truth, weights.double())
    mine = logits.clone().requires_grad_()
    losses = flash.cross_entropy(mine, targets, vocab=11, label_smoothing=smoothing, z_loss=z_loss)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    losses.backward(weights)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(mine.grad.double(), gradient, rtol=tolerance, atol=tolerance)
    assert torch.equal(mine.detach(), mine.grad)


def loss_of_share(rank: int, world: int) -> tuple[list[float], list[list[float]], str]:
    import sys

    sys.modules.update(modules())
    logits, targets = draw(8, 3, 8).float(), torch.tensor([0, 5, 7])
    mine = logits.chunk(world, dim=1)[rank].clone().requires_grad_()
    losses = flash.cross_entropy(mine, targets, vocab=8, group=dist.group.WORLD, label_smoothing=0.1, z_loss=1e-2)
    losses.sum().backward()
    try:
        flash.cross_entropy(mine, targets, vocab=7, group=dist.group.WORLD)
        refused = ""
    except ValueError as error:
        refused = str(error)
    assert mine.grad is not None
    return losses.tolist(), mine.grad.tolist(), refused


def test_cross_entropy_over_a_split_vocabulary() -> None:
    truth = draw(8, 3, 8).requires_grad_()
    expected = plain_loss(truth, torch.tensor([0, 5, 7]), 0.1, 1e-2)
    expected.sum().backward()
    assert truth.grad is not None
    ranks = run_ranks(2, loss_of_share)
    for rank, (losses, gradient, refused) in enumerate(ranks):
        assert losses == pytest.approx(expected.tolist(), rel=1e-5)
        torch.testing.assert_close(
            torch.tensor(gradient), truth.grad.chunk(2, dim=1)[rank].float(), rtol=1e-5, atol=1e-6
        )
        assert refused == "flash-attn's cross-entropy needs equal shares of the vocabulary: 2 rank(s) of 4 are not 7"
