"""What each compiled operator returns for fake tensors: shapes and dtypes without data, for tracing and planning.

Operators that write into their arguments return nothing, and torch asks for no more (torch.compile refuses operators
that return an argument). Importing this registers the others; it needs `engine._C`, which declares them (see
`engine.ops.backend`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import register_fake


def _row_statistic(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], 1), dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _total(x: Tensor, residual: Tensor | None) -> Tensor:
    return x.new_empty(0) if residual is None else torch.empty_like(x)


@register_fake("trimaran::rms_norm")
def _rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _total(x, residual), _row_statistic(x)


@register_fake("trimaran::layer_norm")
def _layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _total(x, residual), _row_statistic(x), _row_statistic(x)


@register_fake("trimaran::rms_norm_backward")
def _rms_norm_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1:], dtype=_wide(x))


@register_fake("trimaran::layer_norm_backward")
def _layer_norm_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dweight = x.new_empty(x.shape[-1:], dtype=_wide(x))
    return torch.empty_like(x), dweight, torch.empty_like(dweight)


@register_fake("trimaran::activation")
def _activation(x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
    gated = kind in ("swiglu", "geglu", "geglu_tanh", "reglu")
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2 if gated else x.shape[-1]))


@register_fake("trimaran::activation_backward")
def _activation_backward(dy: Tensor, x: Tensor, bias: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0 if bias is None else x.shape[-1], dtype=_wide(x))


@register_fake("trimaran::ce_stats")
def _ce_stats(logits: Tensor, targets: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(logits.new_empty(logits.shape[:1], dtype=_wide(logits)) for _ in range(4))  # type: ignore[return-value]


@register_fake("trimaran::means_of_squares")
def _means_of_squares(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[:1]), x.new_empty(x.shape[1:])


@register_fake("trimaran::sum_of_squares")
def _sum_of_squares(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.float64)


@register_fake("trimaran::dropout")
def _dropout(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


@register_fake("trimaran::attention")
def _attention(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, slopes: Tensor | None, scale: float, shift: int
) -> tuple[Tensor, Tensor]:
    b, s, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((b, heads, s), dtype=_wide(q))


@register_fake("trimaran::masked_softmax")
def _masked_softmax(
    scores: Tensor,
    first: Tensor,
    last: Tensor,
    scale: float,
    cap: float,
    slopes: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    return torch.empty_like(scores)


@register_fake("trimaran::masked_softmax_backward")
def _masked_softmax_backward(
    dprobs: Tensor, probs: Tensor, scores: Tensor, first: Tensor, last: Tensor, scale: float, cap: float
) -> Tensor:
    return torch.empty_like(probs)
