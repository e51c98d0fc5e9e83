"""Calls of operators with something that their kernels cannot take, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch


class Refusal(NamedTuple):
    """`call(operators, ones)` must raise `message`; ones(*shape) makes a float32 tensor on the device."""

    name: str
    call: Callable[[Any, Any], Any]
    message: str

    def __str__(self) -> str:
        return self.name

    def check(self, device: torch.device) -> None:
        """Raise AssertionError if kernels on `device` take it."""
        with pytest.raises(RuntimeError, match=self.message):
            self.call(torch.ops.trimaran, lambda *shape: torch.ones(shape, device=device))


def ints(x: torch.Tensor, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return x.to(dtype)


def _adamw(ops: Any, p: Any, g: Any, rounded: Any, scalar: Any) -> Any:
    state = torch.ones_like(p, memory_format=torch.contiguous_format)
    return ops.adamw_(p, g, state, state.clone(), rounded, 0.1, 0.9, 0.9, 1e-8, 0.1, scalar, scalar, scalar)


def _softmax(ops: Any, one: Any, keys: int = 4, dtype: torch.dtype = torch.int32, cap: float = 0.0, **parts: Any) -> Any:
    ranges = ints(one(1, keys), dtype)
    scores = parts.get("scores", one(2, 3, 4, 4))
    return ops.masked_softmax(scores, ranges, ranges, 1.0, cap, parts.get("slopes"), parts.get("bias"))


def _grad(ops: Any, one: Any, logits: Any, row: Any, vocab: int = 5) -> Any:
    return ops.ce_grad_(logits, ints(one(2)), 0, row, row, row, vocab, 0.1, 0.0)


REFUSALS = [
    Refusal("weight-shape", lambda ops, one: ops.rms_norm(one(2, 4), None, one(3), 1e-5), "weight has 3 elements, rows 4"),
    Refusal("norm-strides", lambda ops, one: ops.rms_norm(one(4, 2).t(), None, one(4), 1e-5), "needs contiguous tensors"),
    Refusal("norm-dtypes", lambda ops, one: ops.rms_norm(one(2, 4), None, one(4).half(), 1e-5), "one dtype, not Float and"),
    Refusal("norm-ints", lambda ops, one: ops.rms_norm(ints(one(2, 4)), None, ints(one(4)), 1e-5), "not implemented for 'Long'"),
    Refusal("residual", lambda ops, one: ops.layer_norm(one(2, 4), one(1, 4), one(4), None, 1e-5), r"residual must be .* \[2, 4\]"),
    Refusal("norm-bias", lambda ops, one: ops.layer_norm(one(2, 4), None, one(4), one(5), 1e-5), "bias must be contiguous"),
    Refusal("rstd", lambda ops, one: ops.rms_norm_backward(one(2, 4), None, one(2, 4), one(4), one(3)), "one Float number a row"),
    Refusal("dy", lambda ops, one: ops.rms_norm_backward(one(2, 3), None, one(2, 4), one(4), one(2)), "gradient must be"),
    Refusal(
        "dtotal", lambda ops, one: ops.layer_norm_backward(one(2, 4), one(8), one(2, 4), one(4), one(2), one(2)), "of the sum must"
    ),
    Refusal("activation-kind", lambda ops, one: ops.activation(one(2, 4), None, "swish"), "there is no swish"),
    Refusal("odd-gate", lambda ops, one: ops.activation(one(2, 5), None, "swiglu"), "gate and up must be equally wide, but have 5"),
    Refusal("activation-bias", lambda ops, one: ops.activation(one(2, 4), one(3), "gelu"), "bias has 3 elements, rows 4"),
    Refusal("activation-strides", lambda ops, one: ops.activation(one(4, 2).t(), None, "gelu"), "takes a contiguous tensor"),
    Refusal("activation-dtypes", lambda ops, one: ops.activation(one(2, 4), one(4).double(), "gelu"), "one dtype, not Float and Double"),
    Refusal("activation-dy", lambda ops, one: ops.activation_backward(one(2, 4), one(2, 4), None, "swiglu"), r"shape \[2, 4\] for input"),
    Refusal("rope-shape", lambda ops, one: ops.rope_(one(2, 3, 4), one(3, 1), one(3, 1), 1, False, False), r"contiguous tensor \[b, s"),
    Refusal("rope-heads", lambda ops, one: ops.rope_(one(2, 3, 4, 2), one(3, 1), one(3, 1), 5, False, False), "cannot turn 5 of 4"),
    Refusal("rope-width", lambda ops, one: ops.rope_(one(2, 3, 4, 2), one(3, 2), one(3, 2), 1, False, False), "do not fit width 2"),
    Refusal("rope-rows", lambda ops, one: ops.rope_(one(2, 3, 4, 2), one(4, 1), one(4, 1), 1, False, False), "do not fit 2 x 3"),
    Refusal("rope-flat", lambda ops, one: ops.rope_(one(2, 3, 4, 2), one(3), one(3), 1, False, False), "tables have 2 or 3"),
    Refusal(
        "rope-dtype", lambda ops, one: ops.rope_(one(2, 3, 4, 2), one(3, 1).half(), one(3, 1).half(), 1, False, False), "be float32"
    ),
    Refusal("scores", lambda ops, one: _softmax(ops, one, scores=one(2, 4, 4)), r"takes \[b, h, queries, keys\]"),
    Refusal("scores-strides", lambda ops, one: _softmax(ops, one, scores=one(2, 3, 4, 4).mT), "takes contiguous"),
    Refusal("ranges", lambda ops, one: _softmax(ops, one, keys=5), r"ranges of keys must be int32 \[1 or b, queries\]"),
    Refusal("ranges-dtype", lambda ops, one: _softmax(ops, one, dtype=torch.int64), "ranges of keys must be int32"),
    Refusal("cap", lambda ops, one: _softmax(ops, one, cap=-1.0), "the cap is -1"),
    Refusal("slopes", lambda ops, one: _softmax(ops, one, slopes=one(4)), "one float32 slope a head"),
    Refusal("softmax-bias", lambda ops, one: _softmax(ops, one, bias=one(2, 4, 4)), r"the bias is \[2, 4, 4\]"),
    Refusal("targets", lambda ops, one: ops.ce_stats(one(2, 5), ints(one(3)), 0), "one int64 target a row"),
    Refusal("targets-dtype", lambda ops, one: ops.ce_stats(one(2, 5), one(2), 0), "one int64 target a row"),
    Refusal("logits", lambda ops, one: ops.ce_stats(one(5, 2).t(), ints(one(2)), 0), "contiguous logits"),
    Refusal("statistics", lambda ops, one: _grad(ops, one, one(2, 5), one(3)), "one number a row"),
    Refusal("statistics-dtype", lambda ops, one: _grad(ops, one, one(2, 5).half(), one(2).half()), "statistics are Half, not Float"),
    Refusal("smoothing", lambda ops, one: _grad(ops, one, one(2, 5), one(2), vocab=0), "needs the size of the vocabulary"),
    Refusal("adamw-shapes", lambda ops, one: _adamw(ops, one(4), one(3), None, one()), "of different shapes"),
    Refusal("adamw-dtypes", lambda ops, one: _adamw(ops, one(4), one(4).double(), None, one()), "one dtype, not Float and Double"),
    Refusal("adamw-strides", lambda ops, one: _adamw(ops, one(4, 2).t(), one(2, 4), None, one()), "parameter is not contiguous"),
    Refusal("adamw-rounded", lambda ops, one: _adamw(ops, one(4), one(4), one(4), one()), "rounds to 16 bits, not to Float"),
    Refusal("adamw-step", lambda ops, one: _adamw(ops, one(4), one(4), None, one(1)), "tensors without dimensions"),
    Refusal("adamw-16-bit", lambda ops, one: _adamw(ops, one(4).half(), one(4).half(), None, one()), "not implemented for 'Half'"),
    Refusal("squares-strides", lambda ops, one: ops.sum_of_squares(one(4, 2).t()), "takes a contiguous tensor"),
    Refusal("squares-vector", lambda ops, one: ops.means_of_squares(one(4)), "takes a contiguous matrix"),
    Refusal("box-strides", lambda ops, one: ops.fill_normal_(one(4, 2).t(), 1, [2, 4], [0, 0], 1.0, 0.0), "a contiguous box"),
    Refusal("box-dims", lambda ops, one: ops.fill_uniform_(one(4), 1, [4], [0, 0], 0.0, 1.0), "as many offsets as dimensions"),
    Refusal("box-outside", lambda ops, one: ops.fill_uniform_(one(4), 1, [5], [2], 0.0, 1.0), r"box \[4\] at \[2\] reaches out of \[5\]"),
    Refusal("box-dtype", lambda ops, one: ops.fill_normal_(one(4).half(), 1, [4], [0], 1.0, 0.0), "float32 and float64, not Half"),
    Refusal(
        "dropout-rows", lambda ops, one: ops.dropout(one(2, 4), None, None, 1, ints(one(3)), 4, 0, 9, 2.0), "int64 rows of x.shape"
    ),
    Refusal("dropout-bias", lambda ops, one: ops.dropout(one(2, 4), one(3), None, 1, ints(one(2)), 4, 0, 9, 2.0), "3 biases for rows of 4"),
    Refusal(
        "dropout-residual", lambda ops, one: ops.dropout(one(2, 4), None, one(2, 5), 1, ints(one(2)), 4, 0, 9, 2.0), "of another shape"
    ),
]  # fmt: skip
