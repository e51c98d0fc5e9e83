"""Cross-entropy over a part of the vocabulary of csrc/cuda/cross_entropy.cu, executed on the host."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cuda.build import CSRC, Emulated, HostBuild
from tests.ops.cuda.judge import DTYPES, SEEDS, for_each_dtype, judge, name, room, unaligned, values, wide

ENTRIES = """
#include "cuda_kernels.h"
using namespace trimaran;
""" + for_each_dtype("""
extern "C" int stats_NAME(const TYPE* logits, const int64_t* targets, Wide<TYPE>* max, Wide<TYPE>* sum,
                          Wide<TYPE>* target, Wide<TYPE>* total, const int64_t* n) {
  return cuda_cross_entropy(CudaCrossEntropy<TYPE>{logits, targets, max, sum, target, total, n[0], n[1], n[2]},
                            nullptr);
}
extern "C" int grad_NAME(TYPE* logits, const int64_t* targets, const Wide<TYPE>* max, const Wide<TYPE>* log_sum,
                         const Wide<TYPE>* scale, const int64_t* n, double smoothing, double z_loss) {
  return cuda_cross_entropy_grad(CudaCrossEntropyGrad<TYPE>{logits, targets, max, log_sum, scale, n[0], n[1], n[2],
                                                            n[3], smoothing, z_loss}, nullptr);
}""")


@pytest.fixture(scope="module")
def kernels(host_build: HostBuild) -> Emulated:
    return host_build.library(CSRC / "cuda" / "cross_entropy.cu", entries=ENTRIES)


def stats(kernels: Emulated, logits: Tensor, targets: Tensor, start: int) -> Tensor:
    """Return the largest logit, the sum of exp, the target's logit and the sum of logits, [4, rows]."""
    found = room(4, logits.shape[0], dtype=wide(logits.dtype))
    kernels(f"stats_{name(logits.dtype)}", logits, targets, *found, [*logits.shape, start])
    return found


def gradient(logits: Tensor, targets: Tensor, scale: Tensor, smoothing: float, z_loss: float) -> Tensor:
    """Return autograd's gradient of the loss that cuda_kernels.h states, in the dtype of `scale`."""
    x = logits.to(scale.dtype, copy=True).requires_grad_()
    log_z = x.logsumexp(-1)
    nll = log_z - x.gather(1, targets[:, None])[:, 0]
    loss = (1 - smoothing) * nll + smoothing * (log_z - x.mean(-1)) + z_loss * log_z.square()
    return torch.autograd.grad(loss, x, scale)[0]


@given(
    dtype=DTYPES, rows=st.sampled_from([0, 1, 3]), v=st.sampled_from([1, 5, 16, 57, 264, 5003, 8192]),
    start=st.sampled_from([0, 100]), scale=st.sampled_from([0.1, 3.0, 300.0]), aligned=st.booleans(), seed=SEEDS,
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_statistics(
    kernels: Emulated, dtype: torch.dtype, rows: int, v: int, start: int, scale: float, aligned: bool, seed: int
) -> None:
    kernels.seed(seed)
    logits = values(seed, rows, v, dtype=dtype, scale=scale)
    logits = logits if aligned else unaligned(logits)
    targets = torch.randint(0, start + v + 50, (rows,), generator=torch.Generator().manual_seed(seed))
    largest, total, target, everything = stats(kernels, logits, targets, start)
    exact = logits.double()
    assert torch.equal(largest.double(), exact.amax(-1))
    plain = (logits.to(wide(dtype)) - largest[:, None]).exp().sum(-1)
    judge(total, plain, (exact - exact.amax(-1, keepdim=True)).exp().sum(-1))
    held = (targets >= start) & (targets < start + v)
    local = (targets - start).clamp(0, v - 1)
    assert torch.equal(target.double(), exact.gather(1, local[:, None])[:, 0] * held)
    size = exact.abs().sum(-1).max().item() if rows else 0.0
    judge(everything, logits.to(wide(dtype)).sum(-1), exact.sum(-1), terms=size)


@given(
    dtype=DTYPES, rows=st.sampled_from([0, 1, 3]), v=st.sampled_from([2, 10, 64, 600]), parts=st.sampled_from([1, 2]),
    smoothing=st.sampled_from([0.0, 0.1]), z_loss=st.sampled_from([0.0, 1e-3]), scale=st.sampled_from([1.0, 20.0]),
    seed=SEEDS,
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_gradient(
    kernels: Emulated, dtype: torch.dtype, rows: int, v: int, parts: int, smoothing: float, z_loss: float,
    scale: float, seed: int,
) -> None:  # fmt: skip
    """The vocabulary cut into parts, whose statistics are joined as ranks would."""
    kernels.seed(seed)
    logits = values(seed, rows, v, dtype=dtype, scale=scale)
    targets = torch.randint(0, v, (rows,), generator=torch.Generator().manual_seed(seed))
    weights = values(seed + 1, rows, dtype=wide(dtype))
    cuts = [(i * v // parts, (i + 1) * v // parts) for i in range(parts)]
    shards = [logits[:, begin:end].clone(memory_format=torch.contiguous_format) for begin, end in cuts]
    found = torch.stack([stats(kernels, shard, targets, cut[0]) for shard, cut in zip(shards, cuts, strict=True)])
    largest = found[:, 0].amax(0)
    log_sum = (found[:, 1] * (found[:, 0] - largest).exp()).sum(0).log()
    for shard, (begin, end) in zip(shards, cuts, strict=True):
        sizes = [rows, end - begin, begin, v]
        kernels(f"grad_{name(dtype)}", shard, targets, largest, log_sum, weights, sizes, smoothing, z_loss)
    truth = gradient(logits, targets, weights.double(), smoothing, z_loss)
    plain = gradient(logits, targets, weights, smoothing, z_loss)
    size = weights.abs().max().item() * (1 + largest.abs().max().item()) if rows else 0.0
    judge(torch.cat(shards, dim=1), plain, truth, terms=size)


def test_masked_columns_and_bad_numbers(kernels: Emulated) -> None:
    logits = values(0, 3, 48, dtype=torch.float32)
    logits[:, :9], logits[1, 20] = -math.inf, float("nan")
    targets = torch.tensor([10, 11, 12])
    largest, total, _, _ = stats(kernels, logits, targets, 0)
    expected = logits[[0, 2]].double()
    torch.testing.assert_close(largest[[0, 2]].double() + total[[0, 2]].double().log(), expected.logsumexp(-1))
    assert total[1].isnan()
    kernels("grad_float32", logits, targets, largest, total.log(), torch.ones(3), [3, 48, 0, 48], 0.0, 0.0)
    assert (logits[[0, 2], :9] == 0).all()
    assert logits[1, 9:].isnan().all()
    assert logits[[0, 2]].isfinite().all()


@pytest.mark.parametrize("v", [47, 48])
def test_rows_of_scale_0_become_zeros(kernels: Emulated, v: int) -> None:
    logits, targets = values(0, 3, v, dtype=torch.float32), torch.tensor([10, 11, 12])
    logits[1, 20] = float("nan")
    largest, total, _, _ = stats(kernels, logits, targets, 0)
    kernels("grad_float32", logits, targets, largest, total.log(), torch.tensor([1.0, 0, 1]), [3, v, 0, v], 0.1, 1e-3)
    assert torch.equal(logits[1], torch.zeros(v))
    assert (logits[::2].isfinite() & (logits[::2] != 0)).all()


def test_the_size_of_the_vocabulary_need_not_be_known_where_nothing_is_smoothed(kernels: Emulated) -> None:
    logits, targets, zero = torch.zeros(1, 4), torch.tensor([2]), torch.zeros(1)
    kernels("grad_float32", logits, targets, zero, torch.full((1,), math.log(4)), torch.ones(1), [1, 4, 0, 0], 0.0, 0.0)
    torch.testing.assert_close(logits, torch.tensor([[0.25, 0.25, -0.75, 0.25]]))


def test_a_part_without_columns(kernels: Emulated) -> None:
    found = stats(kernels, torch.empty(2, 0), torch.tensor([0, 1]), 0)
    assert torch.equal(found[0], torch.full((2,), -math.inf))
    assert torch.equal(found[1:], torch.zeros(3, 2))
