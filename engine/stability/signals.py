"""What the detectors see of a step, what they may say of it, and the bounds they set before it."""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

OK, SKIP, ROLLBACK = "ok", "skip", "rollback"
DRIFT = "drift"  # the cause of a verdict that no data are to blame for
_GRAVITY = (OK, SKIP, ROLLBACK)


@dataclass(frozen=True)
class Signals:
    """One step as every rank knows it, after reduction over the world."""

    step: int  # trained steps before this one
    loss: float  # nats per token of the global batch
    grad_norm: float  # global norm before clipping
    finite: bool  # loss and gradients are, on every rank
    scaled: bool = False  # a dynamic loss scale is in use: a non-finite gradient may be its overflow

    @property
    def overflowed(self) -> bool:
        """Say whether this is the loss scaler's affair: it halves the scale, and the step goes for nothing."""
        return self.scaled and not self.finite and math.isfinite(self.loss)


@dataclass(frozen=True)
class Verdict:
    """What detectors say of a step. `cause` is nonfinite, overflow, spike, slow, drift (copies
    of weights differ), or level (a new level is accepted)."""

    kind: str = OK  # ok | skip (do not make this update) | rollback
    cause: str = ""
    onset: int = -1  # the first bad step of what led here; -1 when ok
    reason: str = ""  # for people, without a full stop
    evidence: dict[str, float] = field(default_factory=dict)  # told to the detectors again after a rollback

    def to_plain(self) -> dict[str, Any]:
        """Return this as JSON values, for the ledger."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Verdict:
        """Return what `to_plain` was given."""
        return Verdict(**plain)


def gravest(*verdicts: Verdict) -> Verdict:
    """Return the verdict that asks for most, the first of equals."""
    return max(verdicts, key=lambda verdict: _GRAVITY.index(verdict.kind))


@dataclass(frozen=True)
class Limits:
    """The largest loss and gradient norm with which an update is still made; infinite where nothing is known yet.

    Both are float32 numbers, so that a device that compares a float32 loss with them decides as the host does:
    ``keep = isfinite(loss) & isfinite(norm) & (loss <= limits.loss) & (norm <= limits.grad_norm)``. `isfinite`
    cannot be left out, as inf <= inf.
    """

    loss: float = math.inf
    grad_norm: float = math.inf

    @staticmethod
    def rounded(loss: float, grad_norm: float) -> Limits:
        """Return limits at the nearest float32 numbers."""
        return Limits(_float32(loss), _float32(grad_norm))

    def admit(self, signals: Signals) -> bool:
        """Say whether the step of `signals` is updated with."""
        return signals.finite and signals.loss <= self.loss and signals.grad_norm <= self.grad_norm


NO_LIMITS = Limits()


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf
