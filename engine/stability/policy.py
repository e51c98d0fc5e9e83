"""Which policies of `conf/stability/` can work: bounds of every threshold, budget and cool-down."""

from __future__ import annotations

import math

from engine.config import StabilityConfig
from engine.errors import ConfigError, did_you_mean

_AT_LEAST = {
    "window": 8, "span": 1, "warm": 8, "alarms": 1, "norm_alarms": 1, "nonfinite_streak": 1, "overflow_streak": 1,
    "slow_span": 1, "slow_patience": 1, "settle": 2, "hold_start": 0, "hold_warmup": 0, "hold_rollback": 0,
    "skip_before": 0, "skip_least": 0, "min_rewind": 0, "restart_within": 0, "same_place": 0, "widen": 1,
    "cooldown": 0, "lower_after": 0, "lr_rewarm": 0, "tries": 0, "budget": 0, "budget_span": 1, "budget_in_span": 0,
    "lr_hold": 1, "recheck_interval": 0, "drift_interval": 0, "healthy_after": 0, "snapshot_interval": 1,
    "snapshots": 1, "snapshot_mb": 0,
}  # fmt: skip
_ABOVE = {
    "z": 0.0,
    "z_row": 0.0,
    "loss_excess": 0.0,
    "norm_ratio": 1.0,
    "norm_far": 1.0,
    "slow_margin": 0.0,
    "lr_factor": 0.0,
    "clip_factor": 0.0,
}
_UP_TO_ONE = ("lr_factor", "clip_factor")
_NOT_BELOW = {"window": ("warm", "norm_alarms"), "span": ("alarms",)}  # the first must hold what the others ask for
_MOST = 1e9
_MOST_SKIPPED = 1e7  # steps of data; what is counted step by step at a rollback
_SKIPS = ("drop", "defer")


def check_policy(policy: StabilityConfig) -> None:
    """Raise ConfigError for the first field of `policy` that is out of range."""
    for key, least in _AT_LEAST.items():
        value = getattr(policy, key)
        if value is not None and not least <= value <= _MOST:
            more = f"{least} or more" if not value > _MOST else f"{_MOST:,.0f} or less"
            raise ConfigError(f"stability.{key}={value} is out of range; write {more}.")
    for key, above in _ABOVE.items():
        if not above < getattr(policy, key) < math.inf:
            raise ConfigError(f"stability.{key}={getattr(policy, key)} is out of range; write more than {above:g}.")
    for key in _UP_TO_ONE:
        if getattr(policy, key) > 1:
            raise ConfigError(f"stability.{key}={getattr(policy, key):g} would raise it; write a number up to 1.")
    for key, others in _NOT_BELOW.items():
        for other in others:
            if getattr(policy, key) < getattr(policy, other):
                raise ConfigError(
                    f"stability.{key}={getattr(policy, key)} cannot hold stability.{other}={getattr(policy, other)}; "
                    f"write stability.{key}={getattr(policy, other)} or more."
                )
    if policy.skip not in _SKIPS:
        raise ConfigError(f"stability.skip={policy.skip} is unknown.{did_you_mean(policy.skip, _SKIPS)}")
    widest = math.log(max(policy.skip_before, policy.skip_least, 1)) + max(0, policy.tries - 1) * math.log(policy.widen)
    if widest > math.log(_MOST_SKIPPED):
        raise ConfigError(
            f"stability.widen={policy.widen:g} would have try {policy.tries} pass over more than {_MOST_SKIPPED:,.0f} "
            "steps of data; write smaller stability.skip_least, skip_before, widen or tries."
        )
    lowers_at_once = policy.lower_after == 0 and min(policy.lr_factor, policy.clip_factor) < 1
    if policy.rollback and policy.skip_least == 0 and not lowers_at_once:
        raise ConfigError(
            "stability.skip_least=0 passes no data over, so that a rollback would train the same steps into the same "
            "spike; write stability.skip_least=50, or stability.lower_after=0 with stability.lr_factor below 1."
        )
