"""What CUDA kernels, executed on the host, are held to: float64 truth, by the measure of torch's own error."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

C_NAMES = {
    torch.float32: "float", torch.float64: "double", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16",
}  # fmt: skip
DTYPES = st.sampled_from(list(C_NAMES))
SEEDS = st.integers(0, 2**32)  # of data, and of the order in which blocks and threads run
WIDTHS = st.sampled_from([1, 3, 8, 17, 31, 64, 96, 200, 264, 1030])  # rows with and without vectors, and long ones


def for_each_dtype(text: str) -> str:
    """Return C++ for all dtypes: NAME becomes torch's name of one, TYPE the kernels'."""
    return "\n".join(text.replace("NAME", name(dtype)).replace("TYPE", c) for dtype, c in C_NAMES.items())


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(seed: int, *shape: int, dtype: torch.dtype, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Return normals times `scale` plus `shift`."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * scale + shift).to(dtype)


def room(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return memory that a kernel must fill."""
    return torch.full(shape, float("nan"), dtype=dtype)


def unaligned(x: Tensor) -> Tensor:
    """Return a copy of x whose memory starts one element after a multiple of 16 bytes."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].copy_(x.flatten()).view(x.shape)


def judge(got: Tensor, plain: Tensor, truth: Tensor, terms: float = 0.0) -> None:
    """Hold `got` to twice the largest error of `plain`, torch's answer in the same dtype, plus one rounding.

    Where torch was lucky, four units in the last place of what kernels compute in are allowed too (sixteen in float64,
    where torch itself is the truth): of the largest value, or of `terms`, the size of what adds up to it, where it
    cancels.
    """
    assert got.shape == truth.shape
    info = torch.finfo(got.dtype)
    noise = (16 if got.dtype == torch.float64 else 4) * torch.finfo(wide(got.dtype)).eps
    finite = truth.abs() <= info.max
    assert torch.equal(torch.isfinite(got), finite), "not finite where the truth is, or the other way round"
    if not finite.any():
        return
    got, plain, truth = got.double()[finite], plain.double()[finite], truth[finite]
    theirs = (plain - truth).abs().max().item()
    size = max(terms, truth.abs().max().item())
    allowed = 2 * theirs + info.eps / 2 * truth.abs() + noise * size + info.tiny * info.eps
    worst = ((got - truth).abs() - allowed).max().item()
    assert worst <= 0, f"{worst} beyond what torch's error {theirs} allows"
