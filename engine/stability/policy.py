"""How a run is watched and what is done about trouble: every threshold, budget and cool-down.

The comment behind a field is its documentation. Steps are trained steps; a rollback takes some of them back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import ConfigError, did_you_mean


@dataclass
class StabilityPolicy:
    """Detectors, then the ladder: skip an update, roll back, roll back further, lower the rate, stop."""

    watch: bool = True  # false: only non-finite steps are skipped, nothing else is watched or done
    # -- detectors
    window: int = 128  # accepted steps that say what is normal
    warm: int = 64  # of them, how many must be known before a step is judged
    z: float = 8.0  # an outlier is this many robust standard deviations above normal ...
    z_row: float = 5.0  # ... or, where `alarms` steps in a row are, this many ...
    loss_excess: float = 0.1  # ... and, so that quiet curves do not alarm, its loss at least this many nats above ...
    norm_ratio: float = 2.0  # ... or its gradient norm this many times the normal one
    alarms: int = 3  # outliers or non-finite steps ...
    span: int = 8  # ... within this many steps make a spike, which is rolled back
    nonfinite_streak: int = 2  # non-finite steps in a row that are rolled back
    overflow_streak: int = 12  # the same for overflows under a dynamic loss scale (fp16)
    slow_span: int = 200  # steps over which the loss is smoothed to see it diverge slowly
    slow_margin: float = 0.3  # nats above its best at which the smoothed loss ...
    slow_patience: int = 200  # ... for this many steps is rolled back
    settle: int = 16  # steps after which the level of a spike that came back after a rollback is accepted
    hold_start: int = 16  # first steps of a run that are neither judged nor learned from
    hold_warmup: int = 16  # the same where a learning-rate warm-up begins later on
    hold_rollback: int = 8  # the same after a rollback
    # -- level 0: the update is not made
    skip_update: bool = True  # of an outlier; a non-finite step's never is
    # -- levels 1 and 2: back to a good state, past the data
    rollback: bool = True
    skip: str = "drop"  # data passed over are dropped, or put off to the end of the planned run: drop | defer
    skip_before: int = 10  # steps of data before the onset that are passed over too
    skip_least: int = 50  # fewest steps of data passed over (more for spikes longer than half of it); 0: none
    min_rewind: int = 50  # steps that the state rolled back to must be older than the onset, unless it is the start
    same_place: int = 128  # onsets at most this many steps apart are one place: go further back, pass over more
    widen: float = 2.0  # how much more data each further try at a place passes over
    cooldown: int = 20  # steps after a rollback before a spike may be rolled back again; non-finite steps always are
    # -- level 3: a lower learning rate, tighter clipping
    lower_after: int = 2  # rollbacks at a place before the next one lowers the rate as well; 0: every one does
    lr_factor: float = 0.5  # by which it is lowered; 1: never
    lr_hold: int | None = 500  # steps it stays lowered; null: to the end
    lr_rewarm: int = 200  # steps over which it then rises back to the schedule
    clip_factor: float = 1.0  # by which the clipping norm is lowered for as long; 1: not at all
    # -- level 4: stop and explain
    tries: int = 3  # rollbacks at one place, at most
    budget: int = 10  # rollbacks of the whole run, at most
    budget_span: int = 1000  # and within the last so many steps ...
    budget_in_span: int = 5  # ... this many


_AT_LEAST = {
    "warm": 8, "alarms": 1, "nonfinite_streak": 1, "overflow_streak": 1, "slow_span": 1, "slow_patience": 1,
    "settle": 2, "hold_start": 0, "hold_warmup": 0, "hold_rollback": 0, "skip_before": 0, "skip_least": 0,
    "min_rewind": 0, "same_place": 0, "widen": 1, "cooldown": 0, "lower_after": 0, "lr_rewarm": 0, "tries": 0,
    "budget": 0, "budget_span": 1, "budget_in_span": 0, "lr_hold": 1,
}  # fmt: skip
_ABOVE = {
    "z": 0.0,
    "z_row": 0.0,
    "loss_excess": 0.0,
    "norm_ratio": 1.0,
    "slow_margin": 0.0,
    "lr_factor": 0.0,
    "clip_factor": 0.0,
}
_UP_TO_ONE = ("lr_factor", "clip_factor")
_NOT_BELOW = {"window": "warm", "span": "alarms"}  # the first must hold as many as the second asks for
_SKIPS = ("drop", "defer")


def check_policy(policy: StabilityPolicy) -> None:
    """Raise ConfigError for the first field of `policy` that is out of range."""
    for key, least in _AT_LEAST.items():
        value = getattr(policy, key)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"stability.{key}={value} is out of range; write {least} or more.")
    for key, above in _ABOVE.items():
        if not above < getattr(policy, key) < math.inf:
            raise ConfigError(f"stability.{key}={getattr(policy, key)} is out of range; write more than {above:g}.")
    for key in _UP_TO_ONE:
        if getattr(policy, key) > 1:
            raise ConfigError(f"stability.{key}={getattr(policy, key):g} would raise it; write a number up to 1.")
    for key, other in _NOT_BELOW.items():
        if getattr(policy, key) < getattr(policy, other):
            raise ConfigError(
                f"stability.{key}={getattr(policy, key)} cannot hold stability.{other}={getattr(policy, other)}; "
                f"write stability.{key}={getattr(policy, other)} or more."
            )
    if policy.skip not in _SKIPS:
        raise ConfigError(f"stability.skip={policy.skip} is unknown.{did_you_mean(policy.skip, _SKIPS)}")
    lowers_at_once = policy.lower_after == 0 and min(policy.lr_factor, policy.clip_factor) < 1
    if policy.rollback and policy.skip_least == 0 and not lowers_at_once:
        raise ConfigError(
            "stability.skip_least=0 passes no data over, so that a rollback would train the same steps into the same "
            "spike; write stability.skip_least=50, or stability.lower_after=0 with stability.lr_factor below 1."
        )
