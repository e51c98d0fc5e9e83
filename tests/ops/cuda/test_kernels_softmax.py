"""Softmax of attention scores of csrc/cuda/softmax.cu, executed on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cuda.build import CSRC, Emulated, HostBuild
from tests.ops.cuda.judge import DTYPES, SEEDS, for_each_dtype, judge, name, room, unaligned, values

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
static CudaScores shape(const int64_t* n, const int32_t* first, const int32_t* last, double scale, double cap) {
  return {n[0], n[1], n[2], n[3], n[4], first, last, scale, cap};
}
""" + for_each_dtype("""
extern "C" int forward_NAME(const TYPE* scores, const TYPE* bias, const float* slopes, TYPE* probs,
                            const int32_t* first, const int32_t* last, const int64_t* n, double scale, double cap) {
  return cuda_softmax(CudaSoftmax<TYPE>{scores, bias, n[5], slopes, probs, shape(n, first, last, scale, cap)}, nullptr);
}
extern "C" int backward_NAME(const TYPE* dprobs, const TYPE* probs, const TYPE* scores, TYPE* dscores,
                             const int32_t* first, const int32_t* last, const int64_t* n, double scale, double cap) {
  return cuda_softmax_backward(CudaSoftmaxBackward<TYPE>{dprobs, probs, scores, dscores,
                                                         shape(n, first, last, scale, cap)}, nullptr);
}""")


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "softmax.cu", entries=ENTRIES)


@dataclass
class Scores:
    """Scores [b, h, queries, keys], and what turns them into probabilities."""

    scores: Tensor
    bias: Tensor | None
    slopes: Tensor | None
    first: Tensor
    last: Tensor
    scale: float
    cap: float

    def plain(self, dtype: torch.dtype) -> Tensor:
        """Return the probabilities, computed by torch in `dtype`."""
        logits = self.scores.to(dtype) * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        if self.bias is not None:
            logits = logits + self.bias.to(dtype)
        keys = torch.arange(logits.shape[-1])
        if self.slopes is not None:
            away = keys[None, :] - torch.arange(logits.shape[-2])[:, None]
            logits = logits + self.slopes.to(dtype)[:, None, None] * away
        seen = ((keys >= self.first[..., None]) & (keys <= self.last[..., None]))[:, None].expand_as(logits)
        return logits.masked_fill(~seen, -math.inf).softmax(-1).where(seen, 0.0)

    def size(self) -> float:
        """Return how large the numbers get that make a logit."""
        away = 0.0 if self.slopes is None else self.slopes.max().item() * self.scores.shape[-1]
        parts = [x for x in (self.scores * self.scale, self.bias) if x is not None and x.numel()]
        return sum((x.abs().max().item() for x in parts), start=away)

    def gradient(self, probs: Tensor, dprobs: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the gradient of the scores from the probabilities, computed by torch in `dtype`."""
        p, dp = probs.to(dtype), dprobs.to(dtype)
        dlogits = p * (dp - (p * dp).sum(-1, keepdim=True))
        if self.cap:
            dlogits = dlogits * (1 - torch.tanh(self.scores.to(dtype) * (self.scale / self.cap)).square())
        return dlogits * self.scale


@given(
    dtype=DTYPES, b=st.integers(0, 2), h=st.integers(1, 3), queries=st.sampled_from([1, 4, 9]),
    keys=st.sampled_from([1, 7, 16, 33, 64, 264]), mask=st.sampled_from(["causal", "padded", "window", "full"]),
    bias=st.sampled_from([None, 1, 0]), slopes=st.booleans(), cap=st.sampled_from([0.0, 0.0, 5.0]),
    scale=st.sampled_from([0.125, 1.0, 10.0]), aligned=st.booleans(), in_place=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_softmax(
    kernels: Emulated, dtype: torch.dtype, b: int, h: int, queries: int, keys: int, mask: str, bias: int | None,
    slopes: bool, cap: float, scale: float, aligned: bool, in_place: bool, seed: int,
) -> None:  # fmt: skip
    kernels.seed(seed)
    place = (lambda t: t) if aligned else unaligned
    first, last = ranges(mask, b, queries, keys, seed)
    biases = None if bias is None else place(values(seed + 1, bias or h, queries, keys, dtype=dtype))
    slopes_h = values(seed + 2, h, dtype=torch.float32).abs() if slopes else None
    scores = place(values(seed, b, h, queries, keys, dtype=dtype, scale=3.0))
    case = Scores(scores, biases, slopes_h, first, last, scale, cap)
    dprobs = place(values(seed + 3, b, h, queries, keys, dtype=dtype))
    truth = case.plain(torch.float64)
    sizes = [b, h, queries, keys, first.shape[0], bias or h]
    probs = scores.clone() if in_place else place(room(b, h, queries, keys, dtype=dtype))
    source = probs if in_place else scores
    kernels(f"forward_{name(dtype)}", source, biases, slopes_h, probs, first, last, sizes, scale, cap)
    judge(probs, case.plain(dtype), truth, terms=case.size() / 4)  # exp makes a logit's error one of its result
    exact, found = case.gradient(probs, dprobs, torch.float64), case.gradient(probs, dprobs, dtype)
    terms = scale * (probs.double() * dprobs.double()).abs().sum().item()
    dscores = dprobs if in_place else place(room(b, h, queries, keys, dtype=dtype))
    kernels(f"backward_{name(dtype)}", dprobs, probs, scores if cap else None, dscores, first, last, sizes, scale, cap)
    judge(dscores, found, exact, terms=terms)


def ranges(mask: str, b: int, queries: int, keys: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the first and last keys that are seen, int32 [1 or b, queries]; the window leaves a row without any."""
    full = torch.full((1, queries), keys - 1, dtype=torch.int32)
    places = torch.arange(queries, dtype=torch.int32)[None]
    if mask == "causal":
        return torch.zeros_like(full), places + (keys - queries)
    if mask == "padded":
        lengths = torch.randint(0, keys + 1, (b, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
        return torch.zeros(b, queries, dtype=torch.int32), (lengths - 1).expand(b, queries).contiguous()
    if mask == "window":
        return places + 2, places + 2 + torch.tensor([[-1, 0, 5] * queries], dtype=torch.int32)[:, :queries]
    return torch.zeros_like(full), full


def test_bad_scores_stay_in_their_row(kernels: Emulated) -> None:
    scores = values(0, 1, 1, 3, 40, dtype=torch.float32)
    scores[0, 0, 1, 5], scores[0, 0, 2, 39] = float("nan"), float("nan")
    first, last = torch.zeros(1, 3, dtype=torch.int32), torch.full((1, 3), 30, dtype=torch.int32)
    probs = room(1, 1, 3, 40, dtype=torch.float32)
    kernels("forward_float32", scores, None, None, probs, first, last, [1, 1, 3, 40, 1, 1], 1.0, 0.0)
    assert probs[0, 0, [0, 2]].isfinite().all()  # the last row doesn't see its own
    assert probs[0, 0, 1, :31].isnan().all()
    assert (probs[..., 31:] == 0).all()


def test_minus_infinity_in_the_bias_is_a_mask(kernels: Emulated) -> None:
    scores, bias = values(0, 1, 1, 2, 40, dtype=torch.float32), torch.zeros(1, 2, 40)
    bias[0, 0, :20], bias[0, 1] = -math.inf, -math.inf
    first, last = torch.zeros(1, 2, dtype=torch.int32), torch.full((1, 2), 39, dtype=torch.int32)
    probs = room(1, 1, 2, 40, dtype=torch.float32)
    kernels("forward_float32", scores, bias, None, probs, first, last, [1, 1, 2, 40, 1, 1], 1.0, 0.0)
    torch.testing.assert_close(probs[0, 0, 0, 20:], scores[0, 0, 0, 20:].softmax(-1))
    assert (probs[0, 0, 0, :20] == 0).all()
    assert (probs[0, 0, 1] == 0).all()


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_the_gradient_is_that_of_autograd(kernels: Emulated, cap: float) -> None:
    first, last = ranges("causal", 1, 4, 10, 0)
    scores = values(0, 1, 2, 4, 10, dtype=torch.float64).requires_grad_()
    probs = Scores(scores, None, None, first, last, 0.7, cap).plain(torch.float64)
    dprobs, dscores = values(1, 1, 2, 4, 10, dtype=torch.float64), room(1, 2, 4, 10, dtype=torch.float64)
    (truth,) = torch.autograd.grad(probs, scores, dprobs)
    sizes = [1, 2, 4, 10, 1, 2]
    kernels("backward_float64", dprobs, probs.detach(), scores.detach(), dscores, first, last, sizes, 0.7, cap)
    torch.testing.assert_close(dscores, truth, rtol=1e-12, atol=1e-13)
