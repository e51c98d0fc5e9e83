"""Every op against float64 torch: values and gradients, reference and compiled kernel alike, odd sizes included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.ops import backend
from engine.ops.activation import gelu, gelu_tanh, swiglu
from engine.ops.adamw import adamw_, sum_of_squares
from engine.ops.attention import attention
from engine.ops.cross_entropy import ce_grad_, ce_stats
from engine.ops.linear import accumulate_bias_grad, accumulate_weight_grad, grad_input, matmul
from engine.ops.norm import layer_norm, rms_norm
from engine.ops.rope import rope, rope_tables

BACKENDS = ["reference", "cpu"]
SIZES = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 31, 64, 100])


@pytest.fixture(params=BACKENDS, autouse=True)
def chosen(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test on the references and on the compiled kernels."""
    if request.param == "cpu" and backend.load_error() is not None:
        pytest.skip(f"engine._C is not built: {backend.load_error()}")
    backend.select(request.param)
    yield request.param
    backend.select("auto")


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def plain_rms(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w


def plain_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def check(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, slack: float = 4) -> None:
    """In float64 equal to 1e-12; in float32 an error of at most twice torch's own (plus `slack` ulp of the largest)."""
    inputs = tuple(x.float().double() for x in inputs)  # so that float32 sees the very same numbers
    truth = _run(plain, inputs, torch.float64)
    for got, expected in zip(_run(ours, inputs, torch.float64), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch_error = _errors(_run(plain, inputs, torch.float32), truth)
    our_error = _errors(_run(ours, inputs, torch.float32), truth)
    largest = max((value.abs().max().item() for value in truth if value.numel()), default=0.0)
    for mine, theirs in zip(our_error, torch_error, strict=True):
        assert mine <= 2 * theirs + slack * 1.2e-7 * largest + 1e-12


def _run(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
    grads = torch.autograd.grad((out * weights).sum(), leaves) if out.numel() else ()
    return [out.detach(), *grads]


def _errors(values: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [(v.double() - t).abs().max().item() if t.numel() else 0.0 for v, t in zip(values, truth, strict=True)]


@given(rows=st.sampled_from([0, 1, 2, 5, 65, 130]), width=SIZES, scale=st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_rms_norm(rows: int, width: int, scale: float) -> None:
    x, w = draw(1, rows, width, scale=scale), draw(2, width)
    # the gradient of a row of one element is a difference of equal numbers: nothing but rounding
    check(lambda x, w: rms_norm(x, w, 1e-5), plain_rms, x, w, slack=32 if width == 1 else 4)


@given(rows=SIZES, width=st.sampled_from([7, 8, 31, 100]))
@settings(max_examples=10, deadline=None)
def test_layer_norm(rows: int, width: int) -> None:
    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w + b

    check(lambda x, w, b: layer_norm(x, w, b, 1e-5), plain, draw(1, rows, width), draw(2, width), draw(3, width))


@given(rows=st.sampled_from([0, 1, 3, 70]), width=SIZES, scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_swiglu(rows: int, width: int, scale: float) -> None:
    check(swiglu, plain_swiglu, draw(1, rows, 2 * width, scale=scale))


def test_gelu() -> None:
    check(gelu, lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), draw(1, 9, 11))
    check(
        gelu_tanh, lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))), draw(1, 9, 11)
    )


@given(
    b=st.integers(1, 3), s=SIZES, heads=st.integers(1, 4), half=SIZES, per_sample=st.booleans(), strided=st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_rope(b: int, s: int, heads: int, half: int, per_sample: bool, strided: bool) -> None:
    positions = torch.arange(s) * 3
    if per_sample:
        positions = torch.stack([positions + sample for sample in range(b)])
    cos, sin = rope_tables(positions, 2 * half, 10000.0)

    def plain(x: Tensor) -> Tensor:
        c, n = (t.to(x.dtype).unsqueeze(-2) for t in (cos, sin))
        first, second = x.chunk(2, -1)
        return torch.cat([first * c - second * n, second * c + first * n], -1)

    def ours(x: Tensor) -> Tensor:
        if strided:  # heads cut out of a wider projection, as in attention
            return rope(torch.cat([x, x], dim=2)[:, :, :heads], cos, sin)
        return rope(x, cos, sin)

    check(ours, plain, draw(1, b, s, heads, 2 * half))


@given(rows=st.sampled_from([1, 2, 70]), vocab=SIZES, cut=st.floats(0, 1), scale=st.sampled_from([1.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_cross_entropy_in_two_parts_of_the_vocabulary(rows: int, vocab: int, cut: float, scale: float) -> None:
    targets = torch.arange(rows) * 7 % vocab
    edge = min(vocab - 1, int(cut * vocab))

    def ours(logits: Tensor) -> Tensor:
        class Parts(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, logits: Tensor) -> Tensor:
                parts = [(logits[:, a:b].clone(), a) for a, b in ((0, edge), (edge, vocab)) if b > a]
                stats = [ce_stats(part, targets, start) for part, start in parts]
                largest = torch.stack([s[0] for s in stats]).amax(0)
                total = sum(s[1] * (s[0] - largest).exp() for s in stats)
                ctx.parts, ctx.rows = parts, (largest, torch.log(total))
                return torch.log(total) + (largest - sum(s[2] for s in stats))

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                made = [ce_grad_(part, targets, start, *ctx.rows, grads[0]) for part, start in ctx.parts]
                for (part, _), grad in zip(ctx.parts, made, strict=True):
                    assert part.data_ptr() == grad.data_ptr(), "the gradient must overwrite the logits"
                return torch.cat(made, dim=1)

        return Parts.apply(logits)

    check(ours, lambda l: F.cross_entropy(l, targets, reduction="none"), draw(1, rows, vocab, scale=scale))


def test_cross_entropy_passes_nan_on() -> None:
    logits = draw(1, 2, 40).float()
    logits[0, 3] = float("nan")
    largest, total, _ = ce_stats(logits, torch.tensor([1, 2]), 0)
    assert torch.isnan(largest[0] + torch.log(total[0]))
    assert torch.isfinite(largest[1] + torch.log(total[1]))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(heads: int, kv_heads: int, masked: bool) -> None:
    b, s, d = 2, 9, 6
    mask = torch.ones(s, s, dtype=torch.bool).tril()
    if masked:
        mask = mask & (torch.arange(s)[:, None] // 4 == torch.arange(s)[None] // 4)
    mask_b1ss = mask.expand(b, 1, s, s) if masked else None

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / d**0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)

    inputs = draw(1, b, s, heads, d), draw(2, b, s, kv_heads, d), draw(3, b, s, kv_heads, d)
    check(lambda q, k, v: attention(q, k, v, mask_b1ss=mask_b1ss, causal=True), plain, *inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_linear_products_and_main_gradients(dtype: torch.dtype) -> None:
    x, w, b, dy = (draw(i, *shape).to(dtype) for i, shape in enumerate([(2, 5, 6), (4, 6), (4,), (2, 5, 4)]))
    loose = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    wide = [t.double() for t in (x, w, b, dy)]

    def near(a: Tensor, e: Tensor) -> None:
        assert a.dtype == dtype or a.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(a.double(), e, rtol=loose, atol=loose * 3)

    near(matmul(x, w, b), wide[0] @ wide[1].t() + wide[2])
    near(grad_input(dy, w), wide[3] @ wide[1])
    assert accumulate_weight_grad(w, dy, x) is not None, "without a main gradient it is returned"
    ready = []
    main = torch.float64 if dtype == torch.float64 else torch.float32
    for weight, shape in ((w, (4, 6)), (b, (4,))):
        weight.main_grad = torch.ones(shape, dtype=main)  # type: ignore[attr-defined]
        weight.grad_ready = lambda: ready.append(1)  # type: ignore[attr-defined]
    assert accumulate_weight_grad(w, dy, x) is None
    assert accumulate_bias_grad(b, dy) is None
    near(w.main_grad, 1 + torch.einsum("bso,bsi->oi", wide[3], wide[0]))  # type: ignore[attr-defined]
    near(b.main_grad, 1 + wide[3].sum((0, 1)))  # type: ignore[attr-defined]
    assert ready == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_follows_torch(dtype: torch.dtype) -> None:
    start, grads = draw(1, 1003).to(dtype), [draw(i + 2, 1003).to(dtype) for i in range(5)]
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for number, grad in enumerate(grads):
        theirs.grad = grad * 0.5
        optimizer.step()
        _update(ours, grad, first, second, number + 1, scale=0.5, keep=1.0)
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)


def _update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, scale: float, keep: float) -> None:
    scalars = [torch.tensor(x, dtype=p.dtype) for x in (step, scale, keep)]
    adamw_(p, g, m, v, lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=scalars[0],
           grad_scale=scalars[1], keep=scalars[2])  # fmt: skip


def test_adamw_keeps_everything_bitwise_when_told() -> None:
    state = [draw(i, 77).float().abs() for i in range(3)]
    before = [tensor.clone() for tensor in state]
    _update(state[0], torch.full((77,), float("nan")), state[1], state[2], 3, scale=float("nan"), keep=0.0)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


@given(n=st.sampled_from([0, 1, 5, 16384, 40000]))
@settings(max_examples=5, deadline=None)
def test_sum_of_squares(n: int) -> None:
    x = draw(1, n).float()
    assert sum_of_squares(x).item() == pytest.approx(x.double().square().sum().item(), rel=1e-13)
    assert sum_of_squares(x).dtype == torch.float64


def test_wrong_shapes_and_dtypes_are_refused(chosen: str) -> None:
    if chosen != "cpu":
        pytest.skip("the references raise torch's own errors")
    with pytest.raises(RuntimeError, match="weight has 3 elements, rows 4"):
        rms_norm(torch.ones(2, 4), torch.ones(3), 1e-5)
    with pytest.raises(RuntimeError, match="tables do not fit"):
        rope(torch.ones(1, 3, 1, 4), torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="int64 target"):
        ce_stats(torch.ones(2, 4), torch.ones(3, dtype=torch.int64), 0)
