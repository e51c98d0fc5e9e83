"""Every compiled operator as torch.library sees it, and what torch.compile makes of the functions around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from engine.ops import backend
from engine.ops.activation import gelu, swiglu
from engine.ops.attention import attention
from engine.ops.dropout import add_dropout, dropout
from engine.ops.key_ranges import KeyRanges
from engine.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from engine.ops.rope import rope_, rope_tables
from engine.ops.softmax import masked_softmax
from tests.ops.cases import Inputs, with_gradients

CPU = torch.device("cpu")
WIDE, HALF = torch.float32, torch.bfloat16

pytestmark = pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    torch._dynamo.reset()
    backend.select("cpu")
    yield
    backend.select()


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """In one graph, or it raises."""
    return torch.compile(call, backend="aot_eager", fullgraph=True)


def assert_same(got: Any, expected: Any) -> None:
    """Hold all tensors of `got` to those of `expected`, bit for bit."""
    got, expected = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in (got, expected))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


# -- operators -----------------------------------------------------------------------------------------------


def _ranges(s: int) -> tuple[Tensor, Tensor]:
    keys = KeyRanges.causal(s, CPU)
    return keys.first_bs, keys.last_bs


def _statistic(inputs: Inputs, *shape: int) -> Tensor:
    return inputs(*shape).abs().float() + 0.5


def _norms(inputs: Inputs, *others: Any) -> list[Any]:
    return [(inputs(2, 3, 8), residual, inputs(8), *others, 1e-5) for residual in (None, inputs(2, 3, 8))]


def _norm_backwards(inputs: Inputs, statistics: int) -> list[Any]:
    rows = [_statistic(inputs, 2, 3, 1) for _ in range(statistics)]
    return [(inputs(2, 3, 8), dtotal, inputs(2, 3, 8), inputs(8), *rows) for dtotal in (None, inputs(2, 3, 8))]


def _attention(inputs: Inputs) -> list[Any]:
    parts = inputs(2, 5, 4, 8).split((2, 1, 1), dim=2)
    return [(*parts, *_ranges(5), slopes, 0.3, 0) for slopes in (None, torch.tensor([0.5, 0.25]))]


def _attention_backward(inputs: Inputs) -> list[Any]:
    (given, *_) = _attention(inputs)
    out, lse = torch.ops.trimaran.attention(*given)
    gradients = [torch.zeros_like(part) for part in given[:3]]
    return [(inputs(*out.shape), *given[:3], out, lse, *given[3:], *gradients)]


def _rope(inputs: Inputs) -> list[Any]:
    return [(inputs(2, 3, 4, 8), *rope_tables(torch.arange(3), 6, 1e4), 3, turn, not turn) for turn in (True, False)]


def _softmax(inputs: Inputs) -> list[Any]:
    scores, bias = inputs(2, 3, 4, 4), inputs(3, 4, 4)
    return [(scores, *_ranges(4), 0.3, 2.0, torch.ones(3), bias), (scores, *_ranges(4), 0.3, 0.0, None, None)]


def _cross_entropy_gradient(inputs: Inputs) -> list[Any]:
    rows = [_statistic(inputs, 3) for _ in range(3)]
    return [(inputs(3, 7), torch.tensor([1, 9, 4]), 2, *rows, 20, 0.1, 0.01)]


def _adamw(inputs: Inputs) -> list[Any]:
    settings, scalars = (0.1, 0.9, 0.95, 1e-8, 0.1), [torch.tensor(1.0)] * 3
    return [
        (inputs(9), inputs(9), inputs(9), inputs(9).abs(), rounded, *settings, *scalars)
        for rounded in (None, torch.zeros(9, dtype=HALF))
    ]


def _dropout(inputs: Inputs) -> list[Any]:
    x, rows = inputs(2, 3, 8), torch.arange(6).view(2, 3)
    return [
        (x, None, None, 7, rows, 8, 0, 2**31, 2.0),
        (x, inputs(8), inputs(2, 3, 8), -7, rows, 20, 3, 2**30, 4 / 3),
    ]


# Of each operator: calls of it, as arguments.
OPERATORS: dict[str, Callable[[Inputs], list[Any]]] = {
    "activation": lambda inputs: [(inputs(2, 3, 8), None, "swiglu"), (inputs(2, 3, 8), inputs(8), "gelu")],
    "activation_backward": lambda inputs: [
        (inputs(2, 3, 4), inputs(2, 3, 8), None, "swiglu"),
        (inputs(2, 3, 8), inputs(2, 3, 8), inputs(8), "gelu"),
    ],
    "adamw_": _adamw,
    "attention": _attention,
    "attention_backward_": _attention_backward,
    "ce_grad_": _cross_entropy_gradient,
    "ce_stats": lambda inputs: [(inputs(3, 7), torch.tensor([1, 9, 4]), 2)],
    "dropout": _dropout,
    "fill_normal_": lambda inputs: [(inputs(2, 3), 7, [4, 5], [1, 2], 0.5, 0.1)],
    "fill_uniform_": lambda inputs: [(inputs(2, 3), 7, [4, 5], [1, 2], -1.0, 1.0)],
    "layer_norm": lambda inputs: _norms(inputs, inputs(8)) + _norms(inputs, None),
    "layer_norm_backward": lambda inputs: _norm_backwards(inputs, 2),
    "masked_softmax": _softmax,
    "masked_softmax_backward": lambda inputs: [
        (inputs(2, 3, 4, 4), inputs(2, 3, 4, 4).softmax(-1), inputs(2, 3, 4, 4), *_ranges(4), 0.3, 2.0)
    ],
    "means_of_squares": lambda inputs: [(inputs(3, 5),)],
    "rms_norm": lambda inputs: _norms(inputs),
    "rms_norm_backward": lambda inputs: _norm_backwards(inputs, 1),
    "rope_": _rope,
    "sum_of_squares": lambda inputs: [(inputs(3, 5),)],
}
WIDE_ONLY = ("adamw_", "fill_normal_", "fill_uniform_", "means_of_squares")


def test_every_operator_has_its_calls_here() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("trimaran::")}
    assert names == {f"trimaran::{name}" for name in OPERATORS}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in OPERATORS for dtype in (WIDE, HALF) if dtype == WIDE or name not in WIDE_ONLY],
    ids=str,
)
def test_operator(name: str, dtype: torch.dtype) -> None:
    """It writes where its schema says and nowhere else, and is compiled to what it does uncompiled."""
    operator = getattr(torch.ops.trimaran, name).default
    for arguments in OPERATORS[name](Inputs(CPU, dtype, dtype)):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
        eager, traced = (tree_map_only(Tensor, Tensor.clone, arguments) for _ in range(2))
        assert_same(compiled(operator)(*traced), operator(*eager))
        assert_same(traced, eager)


# -- functions -----------------------------------------------------------------------------------------------

ROWS = torch.arange(6).view(2, 3)
TABLES = rope_tables(torch.arange(3), 6, 1e4)
CAUSAL = KeyRanges.causal(3, CPU)
# Of each function: a call of it, and the shapes of the arguments that have gradients.
FUNCTIONS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "swiglu": (swiglu, [(2, 3, 8)]),
    "gelu": (gelu, [(2, 3, 8), (8,)]),
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-5), [(2, 3, 8), (8,)]),
    "add_rms_norm": (lambda x, r, w: add_rms_norm(x, r, w, 1e-5), [(2, 3, 8), (2, 3, 8), (8,)]),
    "layer_norm": (lambda x, w, b: layer_norm(x, w, b, 1e-5), [(2, 3, 8), (8,), (8,)]),
    "add_layer_norm": (lambda x, r, w, b: add_layer_norm(x, r, w, b, 1e-5), [(2, 3, 8), (2, 3, 8), (8,), (8,)]),
    "rope_": (lambda x: rope_(x * 1, *TABLES, 3), [(2, 3, 4, 8)]),
    "masked_softmax": (
        lambda x, bias: masked_softmax(x, CAUSAL, scale=0.3, cap=2.0, bias_hss=bias), [(2, 4, 3, 3), (4, 3, 3)]
    ),
    "attention": (lambda x: attention(x, 2, 1, CAUSAL), [(2, 3, 4, 8)]),
    "dropout": (lambda x: dropout(x, 0.4, 2**63 + 1, ROWS, 8), [(2, 3, 8)]),
    "add_dropout": (
        lambda r, x, b: add_dropout(r, x, 0.4, 7, ROWS, 8, bias_f=b), [(2, 3, 8), (2, 3, 8), (8,)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [WIDE, HALF], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    call, shapes = FUNCTIONS[name]
    inputs = Inputs(CPU, dtype, dtype)
    leaves = [inputs.leaf(*shape) for shape in shapes]
    assert_same(with_gradients(compiled(call)(*leaves), *leaves), with_gradients(call(*leaves), *leaves))


def _block(x: Tensor, w: Tensor) -> Tensor:
    """Functions one after the other, which leave each other recipes where nothing is compiled."""
    y, total = add_rms_norm(x, x * 0.5, w, 1e-5)
    turned = rope_(y.flatten(2).repeat(1, 1, 4), *TABLES, 3, head_dim=8)
    mixed = attention(turned.view(2, 3, 4, 8), 2, 1, CAUSAL).flatten(2)
    return add_dropout(total, swiglu(mixed), 0.4, 7, ROWS, 8)


def test_functions_together() -> None:
    inputs = Inputs(CPU, WIDE, WIDE)
    leaves = inputs.leaf(2, 3, 8), inputs.leaf(8)
    assert_same(with_gradients(compiled(_block)(*leaves), *leaves), with_gradients(_block(*leaves), *leaves))


def test_what_was_compiled_follows_the_choice_of_backends() -> None:
    x = Inputs(CPU, WIDE, WIDE)(2, 3, 64) * 3
    softened = compiled(gelu)
    of_kernel = softened(x)
    backend.select("reference")
    of_reference = gelu(x)
    assert not torch.equal(of_kernel, of_reference)  # else nothing is tested
    assert_same(softened(x), of_reference)
