"""Feed-forward non-linearities, with the bias of the layer before them.

Saved for backward: the input alone, and a linear layer that follows keeps nothing more (`engine.ops.recipe`).

Arithmetic is in float32 (float64 for float64) and is rounded once; the gradient of the bias is summed there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.ops import backend
from engine.ops.gradient import deliver
from engine.ops.recipe import with_recipe

_aten = torch.ops.aten


class _Curve(NamedTuple):
    """A function z -> value, and (dy, z) -> dz."""

    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


_SILU = _Curve(F.silu, lambda dy, z: _aten.silu_backward(dy, z))
_GELU = _Curve(F.gelu, lambda dy, z: _aten.gelu_backward(dy, z))
_GELU_TANH = _Curve(
    lambda z: F.gelu(z, approximate="tanh"), lambda dy, z: _aten.gelu_backward(dy, z, approximate="tanh")
)
_RELU = _Curve(F.relu, lambda dy, z: _aten.threshold_backward(dy, z, 0))
_SQUARED_RELU = _Curve(lambda z: F.relu(z).square(), lambda dy, z: 2 * dy * F.relu(z))

_GATED = {"swiglu": _SILU, "geglu": _GELU, "geglu_tanh": _GELU_TANH, "reglu": _RELU}
_PLAIN = {"gelu": _GELU, "gelu_tanh": _GELU_TANH, "relu": _RELU, "squared_relu": _SQUARED_RELU}


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide if bias is None else wide + bias


def _forward(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    z = _biased(x, bias)
    if kind in _PLAIN:
        return _PLAIN[kind].value(z).to(x.dtype)
    gate, up = z.chunk(2, dim=-1)
    return (_GATED[kind].value(gate) * up).to(x.dtype)


def _backward(dy: Tensor, x: Tensor, bias: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    z, dy = _biased(x, bias), _biased(dy, None)
    if kind in _PLAIN:
        dz = _PLAIN[kind].backward(dy, z)
    else:
        gate, up = z.chunk(2, dim=-1)
        value, backward = _GATED[kind]
        dz = torch.cat([backward(dy, gate) * up, dy * value(gate)], dim=-1)  # dy * up may overflow at a closed gate
    return dz.to(x.dtype), dz.flatten(0, -2).sum(0) if bias is not None else dz.new_empty(0)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bias, ctx.kind = bias, kind
        if backend.native("activation", x):
            return torch.ops.trimaran.activation(x.contiguous(), bias, kind)
        return _forward(x, bias, kind)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,), bias, kind = ctx.saved_tensors, ctx.bias, ctx.kind
        if backend.native("activation", x):
            dx, dbias = torch.ops.trimaran.activation_backward(grads[0].contiguous(), x.contiguous(), bias, kind)
        else:
            dx, dbias = _backward(grads[0], x, bias, kind)
        return dx, None if bias is None else deliver(bias, dbias), None


def _activate(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    return with_recipe(_Activation.apply(x, bias, kind), partial(_activate, bias=bias, kind=kind), x)


def swiglu(x_2f: Tensor, bias_2f: Tensor | None = None) -> Tensor:
    """Return silu(gate) * up for [gate, up] = x + bias, x [..., 2f] -> [..., f] (arXiv 2002.05202)."""
    return _activate(x_2f, bias_2f, "swiglu")


def geglu(x_2f: Tensor, bias_2f: Tensor | None = None) -> Tensor:
    """Return gelu(gate) * up for [gate, up] = x + bias, x [..., 2f] -> [..., f] (arXiv 2002.05202)."""
    return _activate(x_2f, bias_2f, "geglu")


def geglu_tanh(x_2f: Tensor, bias_2f: Tensor | None = None) -> Tensor:
    """Return `geglu` with the tanh approximation of GELU."""
    return _activate(x_2f, bias_2f, "geglu_tanh")


def reglu(x_2f: Tensor, bias_2f: Tensor | None = None) -> Tensor:
    """Return relu(gate) * up for [gate, up] = x + bias, x [..., 2f] -> [..., f] (arXiv 2002.05202)."""
    return _activate(x_2f, bias_2f, "reglu")


def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return z * Phi(z) for z = x + bias, Phi the normal distribution function (arXiv 1606.08415)."""
    return _activate(x, bias, "gelu")


def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the tanh approximation of GELU that GPT-2 was trained with, of x + bias."""
    return _activate(x, bias, "gelu_tanh")


def relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return max(x + bias, 0)."""
    return _activate(x, bias, "relu")


def squared_relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return max(x + bias, 0)^2 (arXiv 2109.08668)."""
    return _activate(x, bias, "squared_relu")
