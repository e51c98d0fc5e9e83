"""AdamW whose masters and moments are sharded over dp (ZeRO stage 1, arXiv 1910.02054; AdamW, 1711.05101).

Each replica owns its 1/dp of every bucket. When parameters and main gradients have one dtype (fp32, fp64) the
parameters are their own masters; otherwise (bf16, fp16) a master copy in fp32 is kept and rounded after each
update. Nothing here synchronises with the host: the step counter, the gradient's factor and the 0/1 decision to
apply the update are tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.ops.adamw import adamw_, sum_of_squares
from engine.parallel.buckets import Bucket, Buckets
from engine.parallel.sharding import Piece


@dataclass(frozen=True)
class AdamWSettings:
    """beta1, beta2, eps of Adam, and the decoupled weight decay of decayed pieces."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


@dataclass
class Shard:
    """Optimizer state of my part of one bucket: flat tensors of the main dtype, one length."""

    bucket: Bucket
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @property
    def is_own_master(self) -> bool:
        """Parameters of the main dtype are their own masters."""
        return self.master.dtype == self.bucket.params.dtype


class ShardedAdamW:
    """Optimizer over `Buckets`; `step_count` is the number of updates applied (0-dim float tensor)."""

    def __init__(self, buckets: Buckets, settings: AdamWSettings) -> None:
        self.buckets, self.settings = buckets, settings
        self.main_dtype = buckets.flat_grads.dtype
        self.step_count = torch.zeros((), dtype=self.main_dtype, device=buckets.flat_grads.device)
        self.shards = [self._shard(bucket) for bucket in buckets.buckets]

    def _shard(self, bucket: Bucket) -> Shard:
        params = bucket.param_shard()
        master = params if params.dtype == self.main_dtype else params.to(self.main_dtype)
        return Shard(bucket, master, torch.zeros_like(master), torch.zeros_like(master))

    def norm_squared(self) -> Tensor:
        """Return the sum of squares of my shard of the gradient (0-dim float64), each element counted once.

        Summed over all ranks it is the square of the true global norm: replicated and tied copies are left out
        everywhere but on one rank.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.step_count.device)
        for shard in self.shards:
            grads = shard.bucket.grad_shard()
            for run in shard.bucket.shard_runs():
                if run.counted:
                    total += sum_of_squares(grads[run.start : run.stop])
        return total

    def step(self, lr: float, grad_scale: Tensor, keep: Tensor) -> None:
        """Update my shards with `grad_scale` times the gradient and gather the parameters.

        `grad_scale` (clipping, unscaling) and `keep` (0: leave weights, moments and step count untouched) are
        0-dim tensors of the main dtype.
        """
        self.step_count += keep
        for shard in self.shards:
            grads = shard.bucket.grad_shard()
            for run in shard.bucket.shard_runs():
                span = slice(run.start, run.stop)
                adamw_(
                    shard.master[span], grads[span], shard.exp_avg[span], shard.exp_avg_sq[span],
                    lr=lr, beta1=self.settings.beta1, beta2=self.settings.beta2, eps=self.settings.eps,
                    weight_decay=self.settings.weight_decay if run.decay else 0.0,
                    step=self.step_count, grad_scale=grad_scale, keep=keep,
                    rounded=None if shard.is_own_master else shard.bucket.param_shard()[span],
                )  # fmt: skip
        self.buckets.gather_params()

    def tensors(self) -> list[Tensor]:
        """Return every tensor that holds state of mine: a copy of them all is a state to go back to."""
        return [self.step_count, *(t for shard in self.shards for t in (shard.master, shard.exp_avg, shard.exp_avg_sq))]

    def forget(self) -> None:
        """Begin anew: no moments, no updates made."""
        self.step_count.zero_()
        for shard in self.shards:
            shard.exp_avg.zero_()
            shard.exp_avg_sq.zero_()

    def publish(self) -> None:
        """Round masters that were set into the parameters and give them to every replica."""
        for shard in self.shards:
            if not shard.is_own_master:
                shard.bucket.param_shard().copy_(shard.master)
        self.buckets.gather_params()

    def set_masters(self, values: Callable[[Piece], Tensor]) -> None:
        """Set every weight from `values(piece)`, a tensor of the piece's shape in the main dtype."""
        for shard in self.shards:
            low, high = shard.bucket.shard_range
            for item in shard.bucket.placed:
                flat = values(item.piece).reshape(-1)
                shard.bucket.params[item.start : item.stop].copy_(flat)
                start, stop = max(low, item.start), min(high, item.stop)
                if start < stop:
                    shard.master[start - low : stop - low].copy_(flat[start - item.start : stop - item.start])
        self.buckets.refresh()
