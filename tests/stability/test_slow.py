"""Slow divergence: seen by its height above the best for long, accepted when it is back after a rollback."""

from __future__ import annotations

import json
from itertools import count

from engine.stability.signals import OK, ROLLBACK, Signals, Verdict
from engine.stability.slow import SlowDivergence


def small() -> SlowDivergence:
    return SlowDivergence(span=10, margin=0.3, patience=20)


def feed(slow: SlowDivergence, losses: list[float], start: int = 0) -> list[Verdict]:
    return [slow.observe(Signals(step, loss, 1.0, True)) for step, loss in zip(count(start), losses, strict=False)]


def test_only_what_stays_above_the_best_for_long_is_rolled_back() -> None:
    slow = small()
    falling = [3.0 - 0.01 * k for k in range(100)]
    assert {verdict.kind for verdict in feed(slow, falling + [2.5] * 22 + [1.95] * 30)} == {OK}
    verdicts = feed(slow, [2.5] * 60, 152)
    first = [verdict.kind for verdict in verdicts].index(ROLLBACK)
    assert 20 < first < 35  # patience, and a little until the mean follows
    assert 100 <= verdicts[first].onset <= 152  # of the smoothed best, in the stretch at 1.95
    assert "above its best 1.9" in verdicts[first].reason


def test_what_is_back_after_a_rollback_is_accepted_and_what_is_higher_is_not() -> None:
    for height, kinds in ((2.5, {OK}), (3.5, {OK, ROLLBACK})):
        slow = small()
        feed(slow, [2.0] * 50)
        state = json.loads(json.dumps(slow.state()))
        verdict = feed(slow, [2.5] * 60, 50)[-1]
        slow.load(state)
        slow.returned(verdict.evidence)
        again = feed(slow, [height] * 100, 50)
        assert {verdict.kind for verdict in again} == kinds
        assert [verdict.cause for verdict in again].count("level") == (1 if height == 2.5 else 0)


def test_a_rollback_starts_the_patience_anew() -> None:
    slow = small()
    feed(slow, [2.0] * 50)
    before = [verdict.kind for verdict in feed(slow, [2.5] * 60, 50)].index(ROLLBACK)
    slow = small()
    feed(slow, [2.0] * 50)
    feed(slow, [2.5] * before, 50)
    slow.returned({})
    assert {verdict.kind for verdict in feed(slow, [2.5] * 19, 50 + before)} == {OK}
    assert feed(slow, [2.5], 69 + before)[0].kind == ROLLBACK


def test_a_rebase_forgets_the_best() -> None:
    slow = small()
    feed(slow, [2.0] * 50)
    slow.rebase()
    assert {verdict.kind for verdict in feed(slow, [3.0] * 200, 50)} == {OK}
    assert small().state() | {"best": None} == small().state()
    json.dumps(slow.state(), allow_nan=False)
