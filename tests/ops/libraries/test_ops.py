"""The engine's ops, when libraries run them: the same numbers as the reference, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from engine.mesh import Axis
from engine.ops import backend
from engine.ops.adamw import adamw_, sum_of_squares
from engine.ops.attention import Scores, attention
from engine.ops.key_ranges import KeyRanges
from engine.ops.linear import accumulate_weight_grad
from engine.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from engine.ops.rope import rope_, rope_tables
from engine.parallel.cross_entropy import LossTerms, vocab_parallel_cross_entropy
from tests.ops.witness import draw

CPU, HALF = torch.device("cpu"), torch.bfloat16
B, S, HEADS, KV, D = 2, 10, 4, 2, 16
ALONE = Axis("tp", 1, 0, None, (0,))


def outcome(run: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> list[Tensor]:
    """Return the results of `run` and the gradients of its inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = run(*leaves)
    outs = [out] if isinstance(out, Tensor) else list(out)
    torch.autograd.backward(outs, [torch.linspace(-1, 1, o.numel()).view(o.shape).to(o.dtype) for o in outs])
    return [*(o.detach() for o in outs), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def compare(
    libraries: dict[str, ModuleType], op: str, x: Tensor, run: Callable[..., Tensor | tuple[Tensor, ...]],
    *inputs: Tensor,
) -> None:  # fmt: skip
    backend.select("reference", {}, "cuda")
    wanted = outcome(run, *inputs)
    backend.select("auto", {}, "cuda")
    assert backend.choose(op, x) in ("apex", "flash")
    try:
        got = outcome(run, *inputs)
    finally:
        backend.select("auto")
    unit = 2 * torch.finfo(x.dtype).eps if x.dtype == HALF else 1e-5
    for mine, its in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=4 * unit, atol=unit * max(1.0, its.abs().max().item()))


def test_attention(libraries: dict[str, ModuleType]) -> None:
    qkv = draw(1, B, S, HEADS + 2 * KV, D).to(HALF)
    keys = KeyRanges.causal(S, CPU)
    compare(libraries, "attention", qkv, lambda x: attention(x, HEADS, KV, keys), qkv)
    slopes = torch.linspace(0.1, 1, HEADS)
    compare(libraries, "attention", qkv, lambda x: attention(x, HEADS, KV, keys, scores=Scores(slopes_h=slopes)), qkv)
    window = KeyRanges.causal(S, CPU, window=3)
    compare(libraries, "attention", qkv, lambda x: attention(x, HEADS, KV, window), qkv)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(libraries: dict[str, ModuleType], interleaved: bool) -> None:
    qkv = draw(1, B, S, HEADS + 2 * KV, D).float()
    tables = rope_tables(torch.arange(S), D, 1e4)
    compare(libraries, "rope", qkv, lambda x: rope_(x * 1, *tables, HEADS + KV, interleaved), qkv)


def test_norms(libraries: dict[str, ModuleType]) -> None:
    x, residual, weight, bias = draw(1, B, S, 8), draw(2, B, S, 8), draw(3, 8), draw(4, 8)
    x, residual, weight, bias = x.float(), residual.float(), weight.float(), bias.float()
    compare(libraries, "rms_norm", x, lambda x, w: rms_norm(x, w, 1e-5), x, weight)
    compare(libraries, "rms_norm", x, lambda x, r, w: add_rms_norm(x, r, w, 1e-5), x, residual, weight)
    compare(libraries, "layer_norm", x, lambda x, w, b: layer_norm(x, w, b, 1e-5), x, weight, bias)
    compare(libraries, "layer_norm", x, lambda x, r, w: add_layer_norm(x, r, w, None, 1e-5), x, residual, weight)


@pytest.mark.parametrize("terms", [LossTerms(12), LossTerms(12, 0.1, 1e-3)])
def test_cross_entropy(libraries: dict[str, ModuleType], terms: LossTerms) -> None:
    logits, targets = draw(1, 6, 12).float(), torch.arange(6)
    compare(
        libraries, "cross_entropy", logits,
        lambda x: vocab_parallel_cross_entropy(x.clone(), targets, 0, ALONE, terms), logits,
    )  # fmt: skip


def test_weight_gradient(libraries: dict[str, ModuleType]) -> None:
    weight = nn.Parameter(torch.zeros(4, 6, dtype=HALF))
    weight.main_grad, weight.grad_ready = torch.ones(4, 6), lambda: None  # type: ignore[attr-defined]
    dy, x = draw(1, 2, 5, 4).to(HALF), draw(2, 2, 5, 6).to(HALF)
    backend.select("auto", {}, "cuda")
    assert backend.choose("weight_grad", x) == "apex"
    assert accumulate_weight_grad(weight, dy, x) is None
    backend.select("auto")
    expected = 1 + torch.einsum("bso,bsi->oi", dy.double(), x.double())
    torch.testing.assert_close(weight.main_grad.double(), expected, rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]


def test_adamw(libraries: dict[str, ModuleType]) -> None:
    results = []
    for choice in ("reference", "auto"):
        backend.select(choice, {}, "cuda")
        flat = [draw(i, 40).float().abs() for i in range(4)]
        rounded, one = torch.zeros(40, dtype=HALF), torch.ones(())
        norm = sum_of_squares(flat[1])
        adamw_(*flat, lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=3 * one, grad_scale=0.5 * one,
               keep=one, rounded=rounded)  # fmt: skip
        results.append((norm, flat[0], flat[2], flat[3], rounded))
    backend.select("auto")
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4 if mine.dtype != HALF else 1e-2, atol=1e-5)
