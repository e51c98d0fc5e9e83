"""Limits decide in float64 on the host as in float32 on a device, and verdicts keep through JSON."""

from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.stability.signals import ROLLBACK, SKIP, Limits, Signals, Verdict, gravest

positive = st.floats(1e-30, 1e38)


@given(loss=positive, norm=positive, ulps=st.integers(-2, 2))
def test_a_limit_is_on_the_same_side_of_a_float32_number_on_every_device(loss: float, norm: float, ulps: int) -> None:
    limits = Limits.rounded(loss, norm)
    seen = np.float32(loss)
    for _ in range(abs(ulps)):
        seen = np.nextafter(seen, np.float32(math.copysign(math.inf, ulps)))
    on_device = bool(seen <= np.float32(limits.loss))
    assert limits.admit(Signals(0, float(seen), 0.0, True)) == on_device == (ulps <= 0)


def test_what_float32_cannot_hold_is_no_limit() -> None:
    assert Limits.rounded(1e39, math.inf) == Limits()
    assert Limits().admit(Signals(0, 1e30, 1e30, True))
    assert not Limits().admit(Signals(0, math.inf, 1.0, False))


def test_verdicts_keep_through_json() -> None:
    verdict = Verdict(ROLLBACK, "spike", 7, "three of eight", {"loss": 3.5, "times": 1})
    assert Verdict.from_plain(json.loads(json.dumps(verdict.to_plain()))) == verdict


def test_the_gravest_verdict_counts_and_the_first_of_equals() -> None:
    skip, other = Verdict(SKIP, "nonfinite"), Verdict(SKIP, "spike")
    assert gravest(Verdict(), skip, other) == skip
    assert gravest(skip, Verdict(ROLLBACK)) == Verdict(ROLLBACK)
