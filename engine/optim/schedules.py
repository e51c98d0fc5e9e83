"""Learning rate and beta2 by trained step, and global batch by consumed samples: all pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator

from engine.config import OptimConfig, TrainConfig


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (0-based).

    Linear warm-up reaches `lr` at its last step, then the schedule decays, to `min_lr` at step `decay_steps - 1`,
    and stays there. `inverse_sqrt` follows lr * sqrt(warmup / step) (arXiv 1706.03762) and never goes below
    min_lr; `wsd` stays at lr and decays linearly over its last part (arXiv 2404.06395). After `restart_steps` all of it
    begins anew (SGDR, arXiv 1608.03983).
    """
    if config.restart_steps:
        step, total_steps = step % config.restart_steps, config.restart_steps
    decay_steps = config.decay_steps or total_steps
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        warmup = max(1, config.warmup_steps)
        return max(config.min_lr, config.lr * math.sqrt(warmup / max(warmup, step + 1)))
    begin, end = max(0, config.warmup_steps - 1), decay_steps - 1  # the last step at lr, the first at min_lr
    if config.schedule == "wsd":
        begin = max(begin, end - max(1, round(config.wsd_decay_fraction * decay_steps)))
    progress = min(1.0, max(0.0, (step - begin) / max(1, end - begin)))
    if config.schedule == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return config.lr * (1.0 - progress) + config.min_lr * progress


def second_beta(step: int, config: OptimConfig) -> float:
    """Return Adam's beta2 of optimizer step `step` (0-based).

    `palm` is 1 - k^-0.8 at step k = step + 1 (arXiv 2204.02311): an average over a growing share of the past, which
    forgets the first gradients soon and needs no correction for a start at 0.
    """
    return 1.0 - (step + 1) ** -0.8 if config.beta2_schedule == "palm" else config.beta2


def global_batch(consumed: int, config: TrainConfig) -> int:
    """Return the global batch size after `consumed` samples.

    `ramp=[first, increment, samples]` grows the batch from `first` by `increment` in equal stretches of
    consumed samples until `global_batch` is reached after `samples`, as Megatron-LM's --rampup-batch-size.
    """
    if not config.ramp:
        return config.global_batch
    first, increment, samples = config.ramp
    stages = max(1, (config.global_batch - first) // increment)
    stage = consumed * stages // max(1, samples)
    return min(config.global_batch, first + stage * increment)


def plan(consumed: int, steps: int, config: TrainConfig) -> Iterator[tuple[int, int]]:
    """Yield (consumed samples before the step, its global batch) for `steps` steps."""
    for _ in range(steps):
        size = global_batch(consumed, config)
        yield consumed, size
        consumed += size
