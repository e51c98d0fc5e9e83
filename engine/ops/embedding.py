"""Look-up of table rows. Saved for backward: the indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_vh: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.table = table_vh
        return torch.nn.functional.embedding(index, table_vh)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (index,) = ctx.saved_tensors
        table_vh, index_n = ctx.table, index.reshape(-1)
        dy_nh = grads[0].reshape(-1, table_vh.shape[1])
        main_grad = getattr(table_vh, "main_grad", None)
        if main_grad is None:
            return _add_rows(torch.zeros_like(table_vh), index_n, dy_nh), None
        _add_rows(main_grad, index_n, dy_nh)
        table_vh.grad_ready()
        return None, None


def _add_rows(out_vh: Tensor, index_n: Tensor, rows_nh: Tensor) -> Tensor:
    """Add rows[n] to out[index[n]], in the same order every time: index_add_ on GPUs is atomic, index_put_ sorts."""
    rows_nh = rows_nh.to(out_vh.dtype)
    if out_vh.is_cpu:
        return out_vh.index_add_(0, index_n, rows_nh)
    return out_vh.index_put_((index_n,), rows_nh, accumulate=True)


def lookup(table_vh: Tensor, index: Tensor) -> Tensor:
    """Return table[index]: [v, h], int64 [...] -> [..., h]. Gradients are summed in the main gradient's precision."""
    return _Lookup.apply(table_vh, index)
