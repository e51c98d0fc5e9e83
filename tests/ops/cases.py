"""Every op with a kernel, once: from drawn inputs to its results and all gradients, on any device and in any dtype.

Witnesses run the same case and are held to its run in float64 on the CPU's plain references.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engine.mesh import Axis
from engine.ops import activation
from engine.ops.adafactor import means_of_squares
from engine.ops.adamw import adamw_, sum_of_squares
from engine.ops.key_ranges import KeyRanges
from engine.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from engine.ops.rope import rope_, rope_tables
from engine.ops.softmax import masked_softmax
from engine.parallel.cross_entropy import LossTerms, vocab_parallel_cross_entropy

ALONE = Axis("tp", 1, 0, None, (0,))


class Inputs:
    """Draws inputs: numbers that `stored` can hold, in `computed`, on `device`."""

    def __init__(self, device: torch.device, stored: torch.dtype, computed: torch.dtype) -> None:
        self.device, self.stored, self.computed = device, stored, computed
        self._seed = 0

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Return normals times `scale`; each call draws others."""
        self._seed += 1
        drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(self._seed), dtype=torch.float64)
        return (drawn * scale).to(self.stored).to(self.device, self.computed)

    def leaf(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self(*shape, scale=scale).requires_grad_()


def with_gradients(outputs: Tensor | tuple[Tensor, ...], *leaves: Tensor) -> list[Tensor]:
    """Return the outputs, and the gradients of their sum by weights that every dtype can hold."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    # made on the CPU, because other devices round linspace in other ways
    weights = [torch.linspace(-1, 1, y.numel()).bfloat16().to(y.device, y.dtype).view(y.shape) for y in outputs]
    return [*(y.detach().clone() for y in outputs), *torch.autograd.grad(outputs, leaves, weights)]


def norm(inputs: Inputs, kind: str, rows: int, h: int) -> list[Tensor]:
    x, residual, w, b = inputs.leaf(2, rows, h), inputs.leaf(2, rows, h), inputs.leaf(h), inputs.leaf(h)
    if kind == "rms_norm":
        return [
            *with_gradients(rms_norm(x, w, 1e-5), x, w),
            *with_gradients(add_rms_norm(x, residual * 0, w, 1e-5), x, w),  # + 0: the sum is exact in every dtype
        ]
    return [
        *with_gradients(layer_norm(x, w, b, 1e-5), x, w, b),
        *with_gradients(layer_norm(x, w, None, 1e-5), x, w),
        *with_gradients(add_layer_norm(x, residual * 0, w, b, 1e-5), x, w, b),
    ]


def feed_forward(inputs: Inputs, kind: str, rows: int, f: int) -> list[Tensor]:
    curve = getattr(activation, kind)
    width = 2 * f if kind in ("swiglu", "geglu", "geglu_tanh", "reglu") else f
    x, bias = inputs.leaf(2, rows, width), inputs.leaf(width)
    return [*with_gradients(curve(x), x), *with_gradients(curve(x, bias), x, bias)]


def rope(inputs: Inputs, half: int, rest: int, interleaved: bool) -> list[Tensor]:
    x, positions = inputs.leaf(2, 5, 4, 2 * half + rest), torch.arange(5, device=inputs.device)
    results = []
    for places in (positions, torch.stack([positions, positions + 3])):
        cos, sin = rope_tables(places.cpu(), 2 * half, 1e4)  # of the CPU: another device's are other numbers
        tables = cos.to(inputs.device), sin.to(inputs.device)
        results += with_gradients(rope_(x * 1, *tables, 3, interleaved), x)
    return results


def softmax(inputs: Inputs, s: int, cap: float) -> list[Tensor]:
    scores, bias, shared = inputs.leaf(2, 3, s, s, scale=3.0), inputs.leaf(3, s, s), inputs.leaf(1, s, s)
    slopes = torch.tensor([0.5, 0.25, 0.125], device=inputs.device)
    documents = torch.arange(2 * s, device=inputs.device).view(2, s) // 3
    causal, windowed = (KeyRanges.causal(s, inputs.device, window) for window in (None, 2))
    return [
        *with_gradients(masked_softmax(scores, causal, scale=0.3, cap=cap), scores),
        *with_gradients(masked_softmax(scores, windowed, slopes_h=slopes, cap=cap), scores),
        *with_gradients(masked_softmax(scores, KeyRanges.documents(documents), bias_hss=bias, cap=cap), scores, bias),
        *with_gradients(masked_softmax(scores, causal, bias_hss=shared, cap=cap), scores, shared),
    ]


def cross_entropy(inputs: Inputs, n: int, v: int) -> list[Tensor]:
    """As one rank that holds all columns sees it, with and without terms besides the likelihood."""
    logits = inputs.leaf(n, v, scale=2.0)
    targets = torch.arange(n, device=inputs.device) * 7 % v
    results = []
    for terms in (LossTerms(), LossTerms(v, 0.1, 1e-2)):
        losses = vocab_parallel_cross_entropy(logits * 1, targets, 0, ALONE, terms)
        results += with_gradients(losses, logits)
    return results


def adamw(inputs: Inputs, n: int, rounded: torch.dtype) -> list[Tensor]:
    """Three updates, of which the second is not kept, on parts of buffers that start anywhere."""
    param, grad, first, second = (inputs(n + 1)[1:] for _ in range(4))
    second.abs_()
    low = torch.zeros(n, dtype=rounded, device=inputs.device)
    for step, keep in ((1.0, 1.0), (2.0, 0.0), (2.0, 1.0)):
        scalars = [torch.tensor(x, dtype=param.dtype, device=inputs.device) for x in (step, 0.5, keep)]
        given = grad.clone() if keep else torch.full_like(grad, math.nan)
        adamw_(
            param, given, first, second, lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1,
            step=scalars[0], grad_scale=scalars[1], keep=scalars[2], rounded=low,
        )  # fmt: skip
    assert torch.equal(low, param.to(rounded))
    return [param, first, second]


def squares(inputs: Inputs, n: int) -> list[Tensor]:
    total = sum_of_squares(inputs(n))
    assert total.dtype == torch.float64
    return [total]


def matrix_squares(inputs: Inputs, rows: int, columns: int) -> list[Tensor]:
    return [*means_of_squares(inputs(rows, columns))]


class Case(NamedTuple):
    """`run(inputs, *sizes)` calls `op`; `terms` is the size of what adds up to the results, some of which cancels."""

    op: str
    run: Callable[..., list[Tensor]]
    sizes: tuple[object, ...]
    terms: float = 8.0
    wide_only: bool = False

    def __str__(self) -> str:
        return "-".join(str(part).removeprefix("torch.") for part in (self.op, *self.sizes))


CASES = [
    *(
        Case(kind, norm, (kind, *sizes))
        for kind in ("rms_norm", "layer_norm")
        for sizes in ((3, 7), (40, 100), (9, 64))
    ),
    *(
        Case("activation", feed_forward, (kind, rows, f))
        for kind in ("swiglu", "geglu", "geglu_tanh", "reglu", "gelu", "gelu_tanh", "relu", "squared_relu")
        for rows, f in ((3, 5), (11, 40))
    ),
    *(Case("rope", rope, (*sizes, turn)) for sizes in ((3, 1), (8, 0)) for turn in (False, True)),
    *(Case("softmax", softmax, (s, cap)) for s in (5, 16) for cap in (0.0, 4.0)),
    *(Case("cross_entropy", cross_entropy, sizes) for sizes in ((5, 11), (3, 264))),
    *(Case("adamw", adamw, (n, half), wide_only=True) for n in (0, 1, 513) for half in (torch.bfloat16, torch.float16)),
    *(Case("adamw", squares, (n,), wide_only=True) for n in (0, 3, 40001)),
    *(Case("adafactor", matrix_squares, sizes, wide_only=True) for sizes in ((1, 3), (70, 48))),
]  # fmt: skip
