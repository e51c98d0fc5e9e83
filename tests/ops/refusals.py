"""Calls of operators with something that their kernels cannot take, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def check_refused(call: Callable[[Any, Any], Any], message: str, device: torch.device) -> None:
    """Hold kernels on `device` to refusing `call(operators, one)` in words; one(*shape) makes a float32 tensor."""
    with pytest.raises(RuntimeError, match=message):
        call(torch.ops.trimaran, lambda *shape: torch.ones(shape, device=device))


def _norm(op: Any, x: Tensor, weight: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Any:
    op.rms_norm(x, residual, weight, 1e-5) if bias is None else op.layer_norm(x, residual, weight, bias, 1e-5)


def _rope(op: Any, x: Tensor, table: Tensor, heads: int = 1) -> Any:
    return op.rope_(x, table, table, heads, False, False)


def _softmax(op: Any, scores: Tensor, ranges: Tensor, cap: float = 0.0, **parts: Tensor) -> Any:
    return op.masked_softmax(scores, ranges, ranges, 1.0, cap, parts.get("slopes"), parts.get("bias"))


def _ce_grad(op: Any, logits: Tensor, row: Tensor, vocab: int = 5) -> Any:
    return op.ce_grad_(logits, row.new_ones(2, dtype=torch.int64), 0, row, row, row, vocab, 0.1, 0.0)


def _adamw(op: Any, param: Tensor, grad: Tensor, step: Tensor, rounded: Tensor | None = None) -> Any:
    state = torch.ones_like(grad)
    return op.adamw_(param, grad, state, state.clone(), rounded, 0.1, 0.9, 0.9, 1e-8, 0.1, step, step, step)


def _dropout(op: Any, x: Tensor, rows: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Any:
    return op.dropout(x, bias, residual, 1, rows.long(), 4, 0, 9, 2.0)


REFUSALS: list[tuple[Callable[[Any, Any], Any], str]] = [
    (lambda op, one: _norm(op, one(2, 4), one(3)), "weight has 3 elements, rows 4"),
    (lambda op, one: _norm(op, one(4, 2).t(), one(4)), "rms_norm needs contiguous tensors"),
    (lambda op, one: _norm(op, one(2, 4), one(4).half()), "input and weight must have one dtype, not Float and Half"),
    (lambda op, one: _norm(op, one(2, 4).long(), one(4).long()), "not implemented for 'Long'"),
    (lambda op, one: _norm(op, one(2, 4), one(4), one(1, 4)), r"residual must be contiguous and have shape \[2, 4\]"),
    (lambda op, one: _norm(op, one(2, 4), one(4), None, one(5)), r"bias must be contiguous and have shape \[4\]"),
    (lambda op, one: op.rms_norm_backward(one(2, 4), None, one(2, 4), one(4), one(3)), "one Float number a row"),
    (lambda op, one: op.rms_norm_backward(one(2, 3), None, one(2, 4), one(4), one(2)), "gradient must be contiguous"),
    (
        lambda op, one: op.layer_norm_backward(one(2, 4), one(8), one(2, 4), one(4), one(2), one(2)),
        "gradient of the sum must be contiguous",
    ),
    (lambda op, one: op.activation(one(2, 4), None, "swish"), "there is no swish"),
    (lambda op, one: op.activation(one(2, 5), None, "swiglu"), "gate and up must be equally wide, but have 5"),
    (lambda op, one: op.activation(one(2, 4), one(3), "gelu"), "bias has 3 elements, rows 4"),
    (lambda op, one: op.activation(one(4, 2).t(), None, "gelu"), "activation takes a contiguous tensor"),
    (lambda op, one: op.activation(one(2, 4), one(4).double(), "gelu"), "must have one dtype, not Float and Double"),
    (lambda op, one: op.activation_backward(one(2, 4), one(2, 4), None, "swiglu"), r"a gradient of shape \[2, 4\] for"),
    (lambda op, one: _rope(op, one(2, 3, 4), one(3, 1)), r"takes a contiguous tensor \[b, s, g, d\]"),
    (lambda op, one: _rope(op, one(2, 3, 4, 2), one(3, 1), 5), "cannot turn 5 of 4 heads"),
    (lambda op, one: _rope(op, one(2, 3, 4, 2), one(3, 2)), "tables do not fit width 2"),
    (lambda op, one: _rope(op, one(2, 3, 4, 2), one(4, 1)), "tables do not fit 2 x 3 positions"),
    (lambda op, one: _rope(op, one(2, 3, 4, 2), one(3)), "tables have 2 or 3 dimensions, not 1"),
    (lambda op, one: _rope(op, one(2, 3, 4, 2), one(3, 1).half()), "tables must be float32"),
    (lambda op, one: _softmax(op, one(2, 4, 4), one(1, 4).int()), r"takes \[b, h, queries, keys\]"),
    (lambda op, one: _softmax(op, one(2, 3, 4, 4).mT, one(1, 4).int()), "takes contiguous"),
    (lambda op, one: _softmax(op, one(2, 3, 4, 4), one(1, 5).int()), r"ranges of keys must be int32 \[1 or b, queries"),
    (lambda op, one: _softmax(op, one(2, 3, 4, 4), one(1, 4).long()), "ranges of keys must be int32"),
    (lambda op, one: _softmax(op, one(2, 3, 4, 4), one(1, 4).int(), -1.0), "the cap is -1, not 0 or more"),
    (lambda op, one: _softmax(op, one(2, 3, 4, 4), one(1, 4).int(), slopes=one(4)), "one float32 slope a head"),
    (
        lambda op, one: _softmax(op, one(2, 3, 4, 4), one(1, 4).int(), bias=one(2, 4, 4)),
        r"the bias is \[2, 4, 4\], not",
    ),
    (lambda op, one: op.ce_stats(one(2, 5), one(3).long(), 0), "one int64 target a row"),
    (lambda op, one: op.ce_stats(one(2, 5), one(2), 0), "takes one int64 target"),
    (lambda op, one: op.ce_stats(one(5, 2).t(), one(2).long(), 0), r"takes contiguous logits \[n, v\]"),
    (lambda op, one: _ce_grad(op, one(2, 5), one(3)), "ce_grad_ takes one number a row"),
    (lambda op, one: _ce_grad(op, one(2, 5).half(), one(2).half()), "row statistics are Half, not Float"),
    (lambda op, one: _ce_grad(op, one(2, 5), one(2), 0), "label smoothing needs the size of the vocabulary"),
    (lambda op, one: _adamw(op, one(4), one(3), one()), "tensors of different shapes"),
    (lambda op, one: _adamw(op, one(4), one(4).double(), one()), "moments must have one dtype, not Float and Double"),
    (lambda op, one: _adamw(op, one(4, 2).t(), one(2, 4), one()), "parameter is not contiguous"),
    (lambda op, one: _adamw(op, one(4), one(4), one(), one(4)), "rounds to 16 bits, not to Float"),
    (lambda op, one: _adamw(op, one(4), one(4), one(1)), "keep are floating point tensors without dimensions"),
    (lambda op, one: _adamw(op, one(4).half(), one(4).half(), one()), "not implemented for 'Half'"),
    (lambda op, one: op.sum_of_squares(one(4, 2).t()), "sum_of_squares takes a contiguous tensor"),
    (lambda op, one: op.means_of_squares(one(4)), "means_of_squares takes a contiguous matrix"),
    (lambda op, one: op.fill_normal_(one(4, 2).t(), 1, [2, 4], [0, 0], 1.0, 0.0), "takes a contiguous box"),
    (lambda op, one: op.fill_uniform_(one(4), 1, [4], [0, 0], 0.0, 1.0), "with as many offsets as dimensions"),
    (lambda op, one: op.fill_uniform_(one(4), 1, [5], [2], 0.0, 1.0), r"the box \[4\] at \[2\] reaches out of \[5\]"),
    (lambda op, one: op.fill_normal_(one(4).half(), 1, [4], [0], 1.0, 0.0), "fills float32 and float64, not Half"),
    (lambda op, one: _dropout(op, one(2, 4), one(3)), r"int64 rows of x.shape\[:-1\]"),
    (lambda op, one: _dropout(op, one(2, 4), one(2), one(3)), "3 biases for rows of 4"),
    (lambda op, one: _dropout(op, one(2, 4), one(2), None, one(2, 5)), "residual of another shape"),
]
