"""Rotary embedding: rotations against complex numbers, tables against Hugging Face's Llama."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops.rope import rope, rope_tables
from tests.ops.witness import SIZES, check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")


def plain(cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
    """Multiply the pairs (i, i + d/2) as complex numbers by cos + i sin."""
    half = x.shape[-1] // 2
    turn = torch.complex(cos.to(x.dtype), sin.to(x.dtype)).unsqueeze(-2)
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


@given(
    b=st.integers(1, 3), s=SIZES, heads=st.integers(1, 4), half=SIZES, per_sample=st.booleans(), strided=st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_rope(b: int, s: int, heads: int, half: int, per_sample: bool, strided: bool) -> None:
    positions = torch.arange(s) * 3
    if per_sample:
        positions = torch.stack([positions + sample for sample in range(b)])
    tables = rope_tables(positions, 2 * half, 10000.0)

    def ours(x: Tensor) -> Tensor:
        if strided:  # heads cut out of a wider projection, as in attention
            return rope(torch.cat([x, x], dim=2)[:, :, :heads], *tables)
        return rope(x, *tables)

    check(ours, lambda x: plain(*tables, x), draw(1, b, s, heads, 2 * half))


def test_rope_gradcheck_and_inverse() -> None:
    x = draw(1, 2, 5, 3, 8).requires_grad_()
    cos, sin = rope_tables(torch.arange(5), 8, 10000.0)
    assert torch.autograd.gradcheck(lambda x: rope(x, cos, sin), (x,))
    torch.testing.assert_close(rope(rope(x, cos, sin), cos, -sin), x, rtol=1e-6, atol=1e-6)


def test_rope_in_bf16() -> None:
    cos, sin = (table.bfloat16().float() for table in rope_tables(torch.arange(30), 16, 10000.0))
    check_bf16(lambda x: rope(x, cos, sin), lambda x: plain(cos, sin, x), draw(1, 2, 30, 3, 16), ulps=2)


@pytest.mark.parametrize(("dim", "theta"), [(64, 10000.0), (128, 500000.0), (6, 1e6)])
def test_tables_are_bitwise_those_of_hugging_face(dim: int, theta: float) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, rope_theta=theta
    )
    positions = torch.arange(5000)
    cos, sin = llama.LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), positions[None])
    ours = rope_tables(positions, dim, theta)
    assert torch.equal(ours[0], cos[0, :, : dim // 2])
    assert torch.equal(ours[1], sin[0, :, : dim // 2])


def test_tables_that_do_not_fit_are_refused(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch refuses to broadcast")
    with pytest.raises(RuntimeError, match="tables do not fit 1 x 3 positions"):
        rope(torch.ones(1, 3, 1, 4), torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="tables do not fit width 4"):
        rope(torch.ones(1, 3, 1, 4), torch.ones(3, 4), torch.ones(3, 4))
