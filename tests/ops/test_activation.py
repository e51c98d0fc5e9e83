"""Feed-forward activations against their definitions in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.ops.activation import geglu, geglu_tanh, gelu, gelu_tanh, reglu, relu, squared_relu, swiglu
from tests.ops.witness import SIZES, check, check_bf16, draw

pytestmark = pytest.mark.usefixtures("each_backend")
Op = Callable[..., Tensor]


def plain_gelu(z: Tensor) -> Tensor:
    return z * torch.erfc(-z / 2**0.5) / 2  # 1 + erf(z / sqrt(2)) would cancel


def plain_gelu_tanh(z: Tensor) -> Tensor:
    return z * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))  # 1 + tanh(u) = 2 sigmoid(2u)


CURVES: dict[Op, Op] = {
    swiglu: F.silu,
    geglu: plain_gelu,
    geglu_tanh: plain_gelu_tanh,
    reglu: F.relu,
    gelu: plain_gelu,
    gelu_tanh: plain_gelu_tanh,
    relu: F.relu,
    squared_relu: lambda z: F.relu(z).square(),
}
GATED = (swiglu, geglu, geglu_tanh, reglu)
each_op = pytest.mark.parametrize("op", CURVES, ids=lambda op: op.__name__)


def plain(op: Op) -> Op:
    """The definition, of x or of x and a bias."""

    def of(x: Tensor, bias: Tensor | None = None) -> Tensor:
        z = x if bias is None else x + bias
        if op not in GATED:
            return CURVES[op](z)
        gate, up = z.chunk(2, -1)
        return CURVES[op](gate) * up

    return of


def width(op: Op, f: int) -> int:
    return 2 * f if op in GATED else f


@each_op
@given(
    rows=st.sampled_from([0, 1, 3, 70]),
    f=st.one_of(SIZES, st.just(600)),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    biased=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_values_and_gradients(op: Op, rows: int, f: int, scale: float, biased: bool) -> None:
    # what a gate multiplies stays near 1: in float64 torch's gelu is only exact to 1e-15 of the largest value
    gate_or_x, up = draw(1, rows, f, scale=scale), draw(3, rows, f)
    inputs = [torch.cat([gate_or_x, up], -1) if op in GATED else gate_or_x, draw(2, width(op, f))]
    # the gradient of the bias is a small difference of large partial sums over 64 rows
    check(op, plain(op), *inputs[: 2 if biased else 1], slack=64 if biased else 4)


@each_op
def test_gradcheck(op: Op) -> None:
    x, bias = draw(1, 2, 3, 10).requires_grad_(), draw(2, 10).requires_grad_()
    assert torch.autograd.gradcheck(op, (x,))
    assert torch.autograd.gradcheck(op, (x, bias))


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_rounded_once(op: Op, dtype: torch.dtype) -> None:
    x, bias = draw(1, 70, 600), draw(2, 600)
    check_bf16(op, plain(op), x, dtype=dtype)
    check_bf16(op, plain(op), x, bias, dtype=dtype)


def test_gelu_is_exact_in_its_tail(each_backend: str) -> None:
    """torch's 1 + erf(x) has lost all digits at -6; the kernel keeps them."""
    if each_backend == "reference":
        pytest.skip("torch's own gelu")
    for dtype, lowest in ((torch.float32, -12.5), (torch.float64, -25.0)):
        x = torch.linspace(lowest, 10, 20001, dtype=dtype)
        truth = x.double() * torch.erfc(-x.double() / 2**0.5) / 2
        ulps = 4 + x.clamp(max=0).square()  # x * x / 2 is rounded before its exponential is taken
        assert ((gelu(x) - truth).abs() <= ulps * torch.finfo(dtype).eps * truth.abs()).all()


@each_op
def test_nothing_overflows_on_the_way(op: Op, each_backend: str) -> None:
    if each_backend == "reference" and op in (gelu_tanh, geglu_tanh):
        pytest.skip("torch's derivative of the tanh form is inf * 0 at 1e30")
    far = torch.tensor([-3e38, -1e30, -1e10, -1e3, 1e3, 1e10, 1e18, 3e18])
    x = (torch.cat([far, torch.ones_like(far)]) if op in GATED else far)[None].requires_grad_()
    y = op(x)[0]
    (dx,) = torch.autograd.grad(y.sum(), x)
    value, slope = (far.square(), 2 * far) if op is squared_relu else (far, torch.ones_like(far))
    torch.testing.assert_close(y, torch.where(far > 0, value, 0.0), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(dx[0, : len(far)], torch.where(far > 0, slope, 0.0), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("op", GATED, ids=lambda op: op.__name__)
def test_a_closed_gate_has_no_gradient(op: Op) -> None:
    """Not even where the product of what comes back and what the gate lets through overflows."""
    x = torch.tensor([-1e4] * 20 + [1e30] * 20).requires_grad_()
    (dx,) = torch.autograd.grad(op(x), x, torch.full((20,), 1e30))
    assert torch.equal(dx, torch.zeros(40))


@each_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_is_passed_on(op: Op, dtype: torch.dtype) -> None:
    x = torch.ones(3, 32, dtype=dtype)
    x[0, 3], x[1, 20] = float("nan"), float("nan")
    assert op(x).isnan().any(dim=1).tolist() == [True, True, False]


@each_op
def test_bias_gradient_reaches_main_grad_unrounded(op: Op) -> None:
    x = draw(1, 300, 8).bfloat16()
    bias = torch.zeros(8, dtype=torch.bfloat16, requires_grad=True)
    bias.main_grad, bias.grad_ready = torch.ones(8), lambda: None  # type: ignore[attr-defined]
    op(x, bias).sum().backward()
    assert bias.grad is None
    wide = x.double().requires_grad_()
    (dx,) = torch.autograd.grad(plain(op)(wide).sum(), wide)
    torch.testing.assert_close(bias.main_grad.double(), 1 + dx.sum(0), rtol=1e-5, atol=1e-4)  # type: ignore[attr-defined]


def test_inputs_that_are_not_contiguous() -> None:
    for op in (swiglu, gelu):
        check(lambda x, op=op: op(x.transpose(0, 1)), lambda x, op=op: plain(op)(x.transpose(0, 1)), draw(1, 5, 3, 24))


def test_results_do_not_depend_on_the_number_of_threads(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch's sum promises nothing")
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        x, bias = draw(1, 1000, 64).float().requires_grad_(), draw(2, 64).float().requires_grad_()
        y = swiglu(x, bias)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, bias))])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_input_alone_is_saved() -> None:
    saved: list[Tensor] = []
    x = draw(1, 4, 16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        swiglu(x)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


def test_wrong_arguments_are_refused(each_backend: str) -> None:
    if each_backend == "reference":
        pytest.skip("torch's own messages")
    with pytest.raises(RuntimeError, match="gate and up must be equally wide, but have 7 features"):
        swiglu(torch.ones(2, 7))
    with pytest.raises(RuntimeError, match="bias has 4 elements, rows 8"):
        swiglu(torch.ones(2, 8), torch.ones(4))
    with pytest.raises(RuntimeError, match="input and bias must have one dtype"):
        gelu(torch.ones(2, 8), torch.ones(8).bfloat16())
    with pytest.raises(RuntimeError, match="there is no swish"):
        torch.ops.trimaran.activation(torch.ones(2, 8), None, "swish")
