"""Dropout by address, with the bias and the residual stream around it in the same pass. Saved: the rows' addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops import backend
from engine.ops.gradient import deliver
from engine.ops.philox import random_bits, signed


def dropout(x: Tensor, p: float, key: int, rows: Tensor, width: int, column_offset: int = 0) -> Tensor:
    """Zero each element of x [..., f] with probability p and scale the rest by 1/(1-p).

    Element (r, f) is addressed by index rows[r] * width + column_offset + f under `key`, so every layout drops the
    same elements; the backward pass draws the mask again. `rows` is int64 of x.shape[:-1].
    """
    if p == 0.0:
        return x
    return _Dropout.apply(x, None, None, (p, key, width, column_offset), rows)


def add_dropout(
    residual: Tensor,
    x: Tensor,
    p: float,
    key: int,
    rows: Tensor,
    width: int,
    column_offset: int = 0,
    *,
    bias_f: Tensor | None = None,
) -> Tensor:
    """Return residual + dropout(x + bias), all [..., f] of one dtype, rounded once; arguments as for `dropout`."""
    if p == 0.0:
        return residual + (x if bias_f is None else x + bias_f)
    return _Dropout.apply(x, bias_f, residual, (p, key, width, column_offset), rows)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        address: tuple[float, int, int, int],
        rows: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.address, ctx.bias = address, bias
        return _drop(x, bias, residual, address, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (rows,), bias = ctx.saved_tensors, ctx.bias
        dx = _drop(grads[0], None, None, ctx.address, rows)
        dbias = None
        if bias is not None:
            wide = torch.promote_types(dx.dtype, torch.float32)
            dbias = deliver(bias, dx.flatten(0, -2).sum(0, dtype=wide))
        return dx, dbias, grads[0] if ctx.needs_input_grad[2] else None, None, None


def _drop(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, address: tuple[float, int, int, int], rows: Tensor
) -> Tensor:
    p, key, width, column = address
    threshold, scale = int(p * 2**32), 1.0 / (1.0 - p)
    if backend.native("dropout", x):
        return torch.ops.trimaran.dropout(
            x.contiguous(), bias, None if residual is None else residual.contiguous(), signed(key), rows.contiguous(),
            width, column, threshold, scale,
        )  # fmt: skip
    wide = x if x.dtype == torch.float64 else x.float()
    if bias is not None:
        wide = wide + bias
    index = rows[..., None] * width + (torch.arange(x.shape[-1], device=x.device) + column)
    y = torch.where(random_bits(key, index) >= threshold, wide * scale, 0.0)
    return (y if residual is None else residual + y).to(x.dtype)
