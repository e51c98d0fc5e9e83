"""Feed-forward non-linearities. Saved for backward: the input alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops import backend


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        if backend.native("swiglu", x):
            return torch.ops.trimaran.swiglu(x.contiguous())
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        if backend.native("swiglu", x):
            return torch.ops.trimaran.swiglu_backward(grads[0].contiguous(), x.contiguous())
        gate, up = x.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        dgate = grads[0] * up * (sigmoid + silu * (1 - sigmoid))
        return torch.cat([dgate, grads[0] * silu], dim=-1)


def swiglu(x_2f: Tensor) -> Tensor:
    """Return silu(gate) * up for x [..., 2f], gate in the first half (arXiv 2002.05202)."""
    return _SwiGLU.apply(x_2f)


def gelu(x: Tensor) -> Tensor:
    """Return x * Phi(x) (arXiv 1606.08415)."""
    return torch.nn.functional.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return the tanh approximation of GELU that GPT-2 was trained with."""
    return torch.nn.functional.gelu(x, approximate="tanh")
