"""AdamW whose masters and moments are sharded over dp (ZeRO stage 1, arXiv 1910.02054; AdamW, 1711.05101).

Each replica owns its 1/dp of every bucket. When parameters and main gradients have one dtype (fp32, fp64) the
parameters are their own masters; otherwise (bf16, fp16) a master copy in fp32 is kept and rounded after each
update. Nothing here synchronises with the host: the step counter, the gradient's factor and the 0/1 decision to
apply the update are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.mesh import Axis
from engine.ops.adamw import adamw_, sum_of_squares
from engine.optim.trial import Rule, measure, verdict
from engine.parallel.buckets import Bucket, Buckets, Run
from engine.parallel.collectives import all_reduce
from engine.parallel.sharding import Piece

_SETTLED = 1e9  # updates after which Adam's corrections for moments that start at 0 are none


@dataclass(frozen=True)
class AdamWSettings:
    """beta1, beta2, eps of Adam, and the decoupled weight decay of decayed pieces.

    Without `corrects_bias` moments are taken as they are. `update_clip` and `max_update_ratio` (0: off) look at an
    update before it is made, see `engine.optim.trial`.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    corrects_bias: bool = True
    update_clip: float = 0.0
    max_update_ratio: float = 0.0


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


@dataclass(frozen=True)
class Part:
    """Elements of a shard that are treated alike; they are of global tensor number `tensor` (0 when not by tensor)."""

    shard: Shard
    run: Run
    tensor: int

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Master, gradient, and both moments."""
        span, shard = slice(self.run.start, self.run.stop), self.shard
        return shard.master[span], shard.bucket.grad_shard()[span], shard.exp_avg[span], shard.exp_avg_sq[span]


class ShardedAdamW:
    """Optimizer over `Buckets`; `step_count` is the number of updates applied (0-dim float tensor).

    `tensors` (global name: number of elements) are told apart where something is decided for each; otherwise it is
    empty. All ranks of `world` must call `step` together.
    """

    def __init__(self, buckets: Buckets, settings: AdamWSettings, tensors: Mapping[str, int], world: Axis) -> None:
        self.buckets, self.settings, self.world = buckets, settings, world
        self.main_dtype, device = buckets.flat_grads.dtype, buckets.flat_grads.device
        self.step_count = torch.zeros((), dtype=self.main_dtype, device=device)
        self._settled = torch.full_like(self.step_count, _SETTLED)
        self.shards = [self._shard(bucket) for bucket in buckets.buckets]
        numbers = {name: number for number, name in enumerate(tensors)}
        self.parts = [
            Part(shard, run, numbers.get(name, 0))
            for shard in self.shards
            for name, run in (shard.bucket.shard_tensors() if tensors else [("", r) for r in shard.bucket.shard_runs()])
        ]
        self._sizes_t = torch.tensor(list(tensors.values()) or [1], dtype=torch.float64, device=device)

    def _shard(self, bucket: Bucket) -> Shard:
        params = bucket.param_shard()
        master = params if params.dtype == self.main_dtype else params.to(self.main_dtype)
        return Shard(bucket, master, torch.zeros_like(master), torch.zeros_like(master))

    def squares(self) -> Tensor:
        """Return the sums of squares of my shards of the gradient by tensor (float64 [t]), each element counted once.

        Summed over tensors and all ranks it is the square of the true global norm: replicated and tied copies are
        left out everywhere but on one rank.
        """
        sums_t = torch.zeros_like(self._sizes_t)
        for part in self.parts:
            if part.run.counted:
                sums_t[part.tensor] += sum_of_squares(part.state[1])
        return sums_t

    def weight_squares(self) -> Tensor:
        """Return the sum of squares of my shards of the weights (float64, 0-dim), each element counted once."""
        total = torch.zeros((), dtype=torch.float64, device=self._sizes_t.device)
        for part in self.parts:
            if part.run.counted:
                total += sum_of_squares(part.state[0])
        return total

    def step(self, lr: float, grad_scale: Tensor, keep: Tensor, beta2: float | None = None) -> Tensor:
        """Update my shards with `grad_scale` times the gradient and gather the parameters; return what became of keep.

        `grad_scale` (clipping, unscaling; 0-dim, or [t] by tensor) and `keep` (0-dim; 0: leave weights, moments and
        step count untouched) are of the main dtype. `beta2` replaces that of the settings.
        """
        settings = self.settings
        rule = Rule(lr, settings.beta1, settings.beta2 if beta2 is None else beta2, settings.eps)
        damping_t = None
        if settings.update_clip > 0 or settings.max_update_ratio > 0:
            damping_t, keep = self._try(rule, grad_scale, keep)
        self.step_count += keep
        for part in self.parts:
            self._update(part, rule, grad_scale, keep, damping_t if settings.update_clip > 0 else None)
        self.buckets.gather_params()
        return keep

    def _update(self, part: Part, rule: Rule, grad_scale: Tensor, keep: Tensor, damping_t: Tensor | None) -> None:
        master, grad, exp_avg, exp_avg_sq = part.state
        rounded = None
        if not part.shard.is_own_master:
            rounded = part.shard.bucket.param_shard()[part.run.start : part.run.stop]
        before = master.clone() if damping_t is not None else None
        adamw_(
            master, grad, exp_avg, exp_avg_sq, **rule._asdict(), weight_decay=self._decay(part),
            step=self._number(self.step_count), grad_scale=_of(part, grad_scale), keep=keep, rounded=rounded,
        )  # fmt: skip
        if damping_t is not None and before is not None:
            torch.lerp(before, master, damping_t[part.tensor], out=master)
            if rounded is not None:
                rounded.copy_(master)

    def _try(self, rule: Rule, grad_scale: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each tensor's update must be multiplied by, [t], and whether all of it is still to be made."""
        sums_tk = torch.zeros((len(self._sizes_t), 3), dtype=torch.float64, device=self._sizes_t.device)
        for part in self.parts:
            if part.run.counted:
                sums_tk[part.tensor] += measure(
                    *part.state, rule, weight_decay=self._decay(part), step=self._number(self.step_count + 1),
                    grad_scale=_of(part, grad_scale),
                )  # fmt: skip
        all_reduce(sums_tk, self.world)
        settings = self.settings
        damping_t, is_small = verdict(sums_tk, self._sizes_t, settings.update_clip, settings.max_update_ratio)
        # A gradient that is not finite makes sums that are not: its update is not made, and nothing must multiply it.
        return torch.where(keep > 0, damping_t, 1.0).to(self.main_dtype), keep * is_small

    def _decay(self, part: Part) -> float:
        return self.settings.weight_decay if part.run.decay else 0.0

    def _number(self, count: Tensor) -> Tensor:
        return count if self.settings.corrects_bias else self._settled

    def tensors(self) -> list[Tensor]:
        """Return every tensor that holds state of mine."""
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


def _of(part: Part, factor: Tensor) -> Tensor:
    """Return a part's own factor, of one for all or of one per tensor."""
    return factor[part.tensor] if factor.ndim else factor
