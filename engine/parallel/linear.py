"""Column- and row-parallel linear layers (Megatron-LM, arXiv 1909.08053; sequence parallelism, arXiv 2205.05198).

A column-parallel layer holds rows of the weight [out, in] and gives its part of the features; a row-parallel
layer holds columns and sums the partial results over tp. With sequence parallelism the column layer first
gathers the sequence shards and the row layer's sum keeps one shard, so that everything between blocks lives on
1/tp of the sequence. In the backward pass the reduction of the input's gradient runs while the weight's
gradient is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.mesh import Axis
from engine.ops.linear import accumulate_bias_grad, accumulate_weight_grad, grad_input, matmul, widen
from engine.ops.recipe import recipe_of
from engine.parallel.collectives import DONE, all_reduce, gather_sequence, start_scatter_sequence
from engine.parallel.sharding import Piece, parameter


@dataclass(frozen=True)
class TensorParallel:
    """What tensor-parallel layers need to know: the axis, and whether activations between blocks are sharded."""

    axis: Axis
    sequence_parallel: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def shards_sequence(self) -> bool:
        return self.sequence_parallel and self.axis.size > 1

    def local_sequence(self, x_bs: Tensor) -> Tensor:
        """Return my shard along dim 1 of a tensor that every rank holds whole."""
        return x_bs.chunk(self.axis.size, dim=1)[self.axis.rank] if self.shards_sequence else x_bs


class _Column(torch.autograd.Function):
    """y = gather(x) W^T + bias, for my rows of W. Saves what x is made of (my shard of it under SP)."""

    @staticmethod
    def forward(ctx: Any, x_bsi: Tensor, weight_oi: Tensor, bias_o: Tensor | None, tp: TensorParallel) -> Tensor:
        _keep(ctx, x_bsi)
        ctx.weight, ctx.bias, ctx.tp = weight_oi, bias_o, tp
        whole_bsi = gather_sequence(x_bsi, tp.axis) if tp.shards_sequence else x_bsi
        return matmul(whole_bsi, weight_oi, bias_o)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dy_bso, tp = widen(grads[0]), ctx.tp
        dx_bsi, handle = None, DONE
        if ctx.needs_input_grad[0]:
            dx_bsi = grad_input(dy_bso, ctx.weight, grads[0].dtype)
            if tp.shards_sequence:
                dx_bsi, handle = start_scatter_sequence(dx_bsi, tp.axis)
            else:
                handle = all_reduce(dx_bsi, tp.axis, asynchronous=True)
        x_bsi = _kept(ctx)
        whole_bsi = gather_sequence(x_bsi, tp.axis) if tp.shards_sequence else x_bsi
        weight_grad = accumulate_weight_grad(ctx.weight, dy_bso, whole_bsi)
        bias_grad = None if ctx.bias is None else accumulate_bias_grad(ctx.bias, dy_bso)
        handle.wait()
        return dx_bsi, weight_grad, bias_grad, None


class _Row(torch.autograd.Function):
    """y = sum over tp of x W^T, + bias, for my columns of W; my sequence shard of it under SP. Saves as `_Column`."""

    @staticmethod
    def forward(ctx: Any, x_bsi: Tensor, weight_oi: Tensor, bias_o: Tensor | None, tp: TensorParallel) -> Tensor:
        _keep(ctx, x_bsi)
        ctx.weight, ctx.bias, ctx.tp = weight_oi, bias_o, tp
        if tp.axis.size == 1:
            return matmul(x_bsi, weight_oi, bias_o)
        y_bso = matmul(x_bsi, weight_oi, None)
        if tp.shards_sequence:
            y_bso, handle = start_scatter_sequence(y_bso, tp.axis)
        else:
            handle = all_reduce(y_bso, tp.axis)
        handle.wait()
        return y_bso if bias_o is None else y_bso.add_(bias_o)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dy_bso, tp = grads[0], ctx.tp
        bias_grad = None if ctx.bias is None else accumulate_bias_grad(ctx.bias, dy_bso)
        wide_bso = widen(gather_sequence(dy_bso, tp.axis) if tp.shards_sequence else dy_bso)
        dx_bsi = grad_input(wide_bso, ctx.weight, dy_bso.dtype)
        return dx_bsi, accumulate_weight_grad(ctx.weight, wide_bso, _kept(ctx)), bias_grad, None


def _keep(ctx: Any, x: Tensor) -> None:
    """Save what the backward pass needs to have x."""
    recipe = recipe_of(x)
    ctx.make = recipe.make
    ctx.save_for_backward(recipe.source)


def _kept(ctx: Any) -> Tensor:
    return ctx.make(*ctx.saved_tensors)


class _Linear(nn.Module):
    def __init__(self, weight: list[Piece], bias: list[Piece], tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.weight = parameter(weight, tp.dtype, tp.device)
        self.bias = parameter(bias, tp.dtype, tp.device) if bias else None


class ColumnLinear(_Linear):
    """[b, s, in] -> [b, s, my rows]; the input is a sequence shard under SP, the output covers the sequence."""

    def forward(self, x_bsi: Tensor) -> Tensor:
        return column_linear(x_bsi, self.weight, self.bias, self.tp)


class RowLinear(_Linear):
    """[b, s, my columns] -> [b, s, out], summed over tp; a sequence shard under SP."""

    def forward(self, x_bsi: Tensor) -> Tensor:
        return _Row.apply(x_bsi, self.weight, self.bias, self.tp)


def column_linear(x_bsi: Tensor, weight_oi: Tensor, bias_o: Tensor | None, tp: TensorParallel) -> Tensor:
    """Apply a column-parallel weight that may belong to another module (a tied embedding)."""
    return _Column.apply(x_bsi, weight_oi, bias_o, tp)
