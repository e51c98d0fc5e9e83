"""Cross-entropy, the optimizer, and 16-bit products."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.mesh import Axis
from engine.ops.adamw import adamw_, sum_of_squares
from engine.ops.attention import attention
from engine.ops.key_ranges import KeyRanges
from engine.ops.linear import accumulate_weight_grad, grad_input, matmul
from engine.parallel.cross_entropy import vocab_parallel_cross_entropy
from tests.bench.kernels.attention import sdpa
from tests.bench.kernels.case import Case

ALONE = Axis("tp", 1, 0, None, (0,))


def cross_entropy_case(rows: int, vocab: int) -> Case:
    logits = torch.randn(rows, vocab, requires_grad=True)
    scratch, targets = torch.randn(rows, vocab), torch.randint(0, vocab, (rows,))

    def ours() -> None:
        leaf = scratch.detach().requires_grad_()
        torch.autograd.grad(vocab_parallel_cross_entropy(leaf, targets, 0, ALONE).mean(), leaf)

    def plain(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    compiled = torch.compile(plain)
    return Case(
        f"cross-entropy fp32, {rows} x {vocab}",
        ours,
        {"F.cross_entropy": lambda: torch.autograd.grad(plain(logits), logits)},
        lambda: torch.autograd.grad(compiled(logits), logits),
        moved=3 * logits.nbytes,
    )


def adamw_case(count: int) -> Case:
    param, grad, first, second = (torch.rand(count) for _ in range(4))
    one = torch.ones(())

    def ours() -> None:
        norm = sum_of_squares(grad).sqrt()
        scale = (1.0 / (norm + 1e-6)).clamp(max=1.0).float()
        adamw_(param, grad, first, second, lr=1e-6, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=one,
               grad_scale=scale, keep=one)  # fmt: skip

    weights = [nn.Parameter(torch.rand(count // 16)) for _ in range(16)]
    for weight in weights:
        weight.grad = torch.rand_like(weight)
    fused, plain = (torch.optim.AdamW(weights, lr=1e-6, **how) for how in ({"fused": True}, {}))  # type: ignore[arg-type]

    def theirs(optimizer: torch.optim.AdamW) -> None:
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return Case(
        f"AdamW + clipping fp32, {count / 1e6:.1f} M",
        ours,
        {"fused=True": lambda: theirs(fused), "default": lambda: theirs(plain)},
        moved=8 * 4 * count,
    )


def half_linear_case(rows: int, inputs: int, outputs: int) -> Case:
    x, dy = torch.randn(rows, inputs).bfloat16(), torch.randn(rows, outputs).bfloat16()
    weight = nn.Parameter(torch.randn(outputs, inputs).bfloat16())
    weight.main_grad, weight.grad_ready = torch.zeros(outputs, inputs), lambda: None  # type: ignore[attr-defined]
    weight.widened = weight.detach().float()  # type: ignore[attr-defined]

    def ours() -> None:
        matmul(x, weight, None)
        grad_input(dy, weight)
        accumulate_weight_grad(weight, dy, x)

    leaf = x.clone().requires_grad_()
    return Case(
        f"linear bf16, {rows} x {inputs} x {outputs}",
        ours,
        {"F.linear": lambda: torch.autograd.grad(F.linear(leaf, weight), (leaf, weight), dy)},
        operations=6 * rows * inputs * outputs,
    )


def half_attention_case(b: int, s: int, heads: int, d: int) -> Case:
    qkv = torch.randn(b, s, 3 * heads, d).bfloat16().requires_grad_()
    gradient, keys = torch.randn(b, s, heads, d).bfloat16(), KeyRanges.causal(s, torch.device("cpu"))
    return Case(
        f"causal attention bf16, {b} x {s}, {heads} heads of {d}",
        lambda: torch.autograd.grad(attention(qkv, heads, heads, keys), qkv, gradient),
        {"SDPA": lambda: torch.autograd.grad(sdpa(qkv, heads), qkv, gradient)},
        operations=7 * b * heads * s * s * d,
    )


def cases() -> Iterator[Case]:
    yield cross_entropy_case(2048, 32768)
    yield adamw_case(20_500_000)
    yield half_linear_case(2048, 384, 1024)
    yield half_attention_case(1, 512, 6, 64)
