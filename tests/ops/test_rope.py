"""Rotary embedding: rotations against complex numbers, tables against Hugging Face's Llama."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.ops.rope import rope_, rope_tables
from tests.ops.witness import SIZES, check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn all heads of a copy."""
    return rope_(x.clone(memory_format=torch.contiguous_format), cos, sin, x.shape[2])


def plain(cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
    """Multiply the pairs (i, i + d/2) as complex numbers by cos + i sin."""
    half = x.shape[-1] // 2
    turn = torch.complex(cos.to(x.dtype), sin.to(x.dtype)).unsqueeze(-2)
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def plain_packed(cos: Tensor, sin: Tensor, x: Tensor, heads: int, interleaved: bool) -> Tensor:
    """Turn the first features of the first heads of x [b, s, g, d]."""
    turning, width = x[:, :, :heads], 2 * cos.shape[-1]
    part = turning[..., :width]
    if interleaved:  # the same as half-split, after sorting even features before odd ones
        order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
        part = plain(cos, sin, part[..., order])[..., order.argsort()]
    else:
        part = plain(cos, sin, part)
    return torch.cat([torch.cat([part, turning[..., width:]], -1), x[:, :, heads:]], 2)


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
            return turned(torch.cat([x, x], dim=2)[:, :, :heads], *tables)
        return turned(x, *tables)

    check(ours, lambda x: plain(*tables, x), draw(1, b, s, heads, 2 * half))


def test_rope_gradcheck_and_inverse() -> None:
    x = draw(1, 2, 5, 3, 8).requires_grad_()
    cos, sin = rope_tables(torch.arange(5), 8, 10000.0)
    assert torch.autograd.gradcheck(lambda x: turned(x, cos, sin), (x,))
    torch.testing.assert_close(turned(turned(x, cos, sin), cos, -sin), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_rounded_once(dtype: torch.dtype) -> None:
    tables, x = rope_tables(torch.arange(30), 16, 10000.0), draw(1, 2, 30, 3, 16)
    check_bf16(lambda x: turned(x, *tables), lambda x: plain(*tables, x), x, dtype=dtype)
    for interleaved in (False, True):
        check_bf16(
            lambda x, how=interleaved: rope_(x.clone(), *tables, 2, how),
            lambda x, how=interleaved: plain_packed(*tables, x, 2, how), x, dtype=dtype,
        )  # fmt: skip


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


@given(
    b=st.integers(1, 3), s=SIZES, heads=st.integers(0, 4), others=st.integers(0, 2), half=SIZES,
    rest=st.sampled_from([0, 1, 5, 32]), per_sample=st.booleans(), interleaved=st.booleans(), flat=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_rope_in_place(
    b: int, s: int, heads: int, others: int, half: int, rest: int, per_sample: bool, interleaved: bool, flat: bool
) -> None:
    d = 2 * half + rest
    positions = torch.arange(s) * 3
    if per_sample:
        positions = torch.stack([positions + sample for sample in range(b)])
    tables = rope_tables(positions, 2 * half, 10000.0)

    def ours(x: Tensor) -> Tensor:
        if flat:
            return rope_(x.flatten(2).clone(), *tables, heads, interleaved, head_dim=d).view(x.shape)
        return rope_(x.clone(), *tables, heads, interleaved)

    check(ours, lambda x: plain_packed(*tables, x, heads, interleaved), draw(1, b, s, heads + others + 1, d))


@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place_gradcheck(interleaved: bool) -> None:
    tables = rope_tables(torch.arange(5), 6, 10000.0)
    x = draw(1, 2, 5, 3, 8).requires_grad_()
    # gradcheck uses the gradient that it gives again: * 1 makes a copy of it
    assert torch.autograd.gradcheck(lambda x: rope_(x.clone(), *tables, 2, interleaved) * 1, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_what_turns_is_overwritten_and_the_rest_kept_bit_for_bit(dtype: torch.dtype, interleaved: bool) -> None:
    cos, sin = rope_tables(torch.arange(7), 12, 10000.0)
    x = draw(1, 2, 7, 5, 20).to(dtype)
    x[:, :, 3:] = float("nan")  # bits of heads that do not turn are not even looked at
    before, tables = x.clone(), (cos.clone(), sin.clone())
    source = x.clone().requires_grad_()
    work = source.clone()
    memory = work.data_ptr()
    y = rope_(work, cos, sin, 3, interleaved)
    assert y is work
    assert y.data_ptr() == memory
    same = torch.ones_like(x, dtype=torch.bool)
    same[:, 1:, :3, :12] = False  # position 0 turns by nothing
    assert torch.equal(bits(y)[same], bits(before)[same])
    assert not torch.equal(y[:, 1:, :3, :12], before[:, 1:, :3, :12])
    assert torch.equal(cos, tables[0])
    assert torch.equal(sin, tables[1])


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def test_the_incoming_gradient_is_overwritten_and_handed_on() -> None:
    cos, sin = rope_tables(torch.arange(7), 8, 10000.0)
    x = draw(1, 2, 7, 3, 8).requires_grad_()
    y = rope_(x * 1, cos, sin, 2)
    dy = draw(2, 2, 7, 3, 8)
    kept, expected = dy.clone(), plain_packed(cos, -sin, dy, 2, False)
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(dx, expected)
    assert torch.equal(dx, dy)  # dy now holds the gradient of the input: nothing was copied
    assert not torch.equal(dy, kept)


def test_a_gradient_that_is_not_contiguous_is_left_alone() -> None:
    cos, sin = rope_tables(torch.arange(7), 8, 10000.0)
    x = draw(1, 2, 7, 3, 8).requires_grad_()
    dy = torch.ones(1, dtype=torch.float64).expand(2, 7, 3, 8)
    (dx,) = torch.autograd.grad(rope_(x * 1, cos, sin, 2), x, dy)
    torch.testing.assert_close(dx, plain_packed(cos, -sin, torch.ones_like(dx), 2, False))
    assert torch.equal(dy, torch.ones(2, 7, 3, 8, dtype=torch.float64))


def test_in_place_on_a_view_and_on_parts_of_the_result() -> None:
    cos, sin = rope_tables(torch.arange(7), 8, 10000.0)

    def ours(x: Tensor) -> Tensor:
        q, k, v = rope_((x * 1).view(2, 7, 4, 8), cos, sin, 3).split([2, 1, 1], dim=2)
        return torch.cat([q * 2, k * 3, v * 4], 2)

    def truth(x: Tensor) -> Tensor:
        q, k, v = plain_packed(cos, sin, x.view(2, 7, 4, 8), 3, False).split([2, 1, 1], dim=2)
        return torch.cat([q * 2, k * 3, v * 4], 2)

    check(ours, truth, draw(1, 2, 7, 32))


def test_nan_reaches_its_pair_alone() -> None:
    tables = rope_tables(torch.arange(2), 8, 10000.0)
    for interleaved, partner in ((False, 5), (True, 0)):
        x = torch.ones(1, 2, 1, 8)
        x[0, 1, 0, 1] = float("nan")
        y = rope_(x, *tables, 1, interleaved)
        assert y.isnan().nonzero()[:, 3].tolist() == sorted([1, partner])


def test_empty_batches() -> None:
    tables = rope_tables(torch.arange(3), 8, 10000.0)
    assert rope_(torch.ones(0, 3, 2, 8), *tables, 2).shape == (0, 3, 2, 8)
    assert rope_(torch.ones(2, 0, 2, 8), *rope_tables(torch.arange(0), 8, 1e4), 2).shape == (2, 0, 2, 8)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    tables, results, threads = rope_tables(torch.arange(500), 32, 1e4), [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(rope_(draw(1, 2, 500, 6, 48).float(), *tables, 4))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_in_place_refuses_what_does_not_fit() -> None:
    cos, sin = torch.ones(3, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match="takes a contiguous tensor"):
        rope_(torch.ones(1, 3, 8, 4).transpose(2, 3), cos, sin, 1)
    with pytest.raises(ValueError, match="cannot turn 3 of 2 heads"):
        rope_(torch.ones(1, 3, 2, 4), cos, sin, 3)
    with pytest.raises(ValueError, match=r"tables \(3, 2\) do not fit 1 x 4 positions"):
        rope_(torch.ones(1, 4, 2, 4), cos, sin, 1)
    with pytest.raises(ValueError, match="heads of 3 features"):
        rope_(torch.ones(1, 3, 2, 3), cos, sin, 1)
    with pytest.raises(ValueError, match=r"not \(1, 3, 10\), 4"):
        rope_(torch.ones(1, 3, 10), cos, sin, 1, head_dim=4)
