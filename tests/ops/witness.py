"""How every op is judged: by float64 torch, and by torch's own error where numbers are rounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

SIZES = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 31, 64, 100])


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Return float64 normals that depend on `seed` and `shape` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def check(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, slack: float = 4) -> None:
    """Compare values and all gradients of `ours` with those of `plain`, for float64 `inputs`.

    In float64 they are equal to 1e-12; in float32 the error is at most twice that of `plain` in float32, plus `slack`
    units in the last place of the largest value.
    """
    inputs = tuple(x.float().double() for x in inputs)  # so that float32 sees the very same numbers
    truth = _values_and_grads(plain, inputs, torch.float64)
    for got, expected in zip(_values_and_grads(ours, inputs, torch.float64), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch_error = _errors(_values_and_grads(plain, inputs, torch.float32), truth)
    our_error = _errors(_values_and_grads(ours, inputs, torch.float32), truth)
    largest = max((value.abs().max().item() for value in truth if value.numel()), default=0.0)
    for mine, theirs in zip(our_error, torch_error, strict=True):
        assert mine <= 2 * theirs + slack * 1.2e-7 * largest + 1e-12


def check_bf16(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, ulps: float = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    """Hold value and gradients for 16-bit `inputs` to `plain` in float64, to `ulps` roundings of the largest."""
    inputs = tuple(x.to(dtype).double() for x in inputs)
    truth = _values_and_grads(plain, inputs, torch.float64)
    unit = ulps * torch.finfo(dtype).eps
    for got, expected in zip(_values_and_grads(ours, inputs, dtype), truth, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=unit, atol=unit * expected.abs().max().item())


def _values_and_grads(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel()).bfloat16().to(dtype).view(out.shape)
    grads = torch.autograd.grad(out, leaves, weights) if out.numel() else ()
    return [out.detach(), *grads]


def _errors(values: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [(v.double() - t).abs().max().item() if t.numel() else 0.0 for v, t in zip(values, truth, strict=True)]
