"""Watch, ladder, ledger and skips together, on a run whose weights are a hash of all that was trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import StabilityConfig
from engine.stability.actions import (
    GO_ON,
    ROLLBACK,
    SKIP,
    STOP,
    Action,
    actions,
    news_at,
    rate_factors,
    skips_after,
)
from engine.stability.ladder import Snapshot, decide
from engine.stability.ledger import COMMIT, INTENT, Ledger, Record, read_ledger
from engine.stability.signals import Signals, Verdict
from engine.stability.skips import Range, Skips
from engine.stability.watch import Watch

BATCH, STEPS, INTERVAL = 4, 400, 20
POLICY = StabilityConfig(window=32, warm=16, hold_start=4, hold_rollback=4, min_rewind=15, skip_before=2, skip_least=12)


class Crash(Exception):
    """The process dies here."""


@dataclass
class Run:
    """A run folder and, between crashes, a process that trains in it."""

    folder: Path
    poison: Iterable[int] = ()
    policy: StabilityConfig = field(default_factory=lambda: POLICY)
    given: Skips = field(default_factory=Skips)
    crash_at: str = ""
    disk: dict[int, str] = field(default_factory=dict)

    def train(self) -> str:
        """Train to the end, or go on after a crash; return the hash of the weights."""
        ledger = Ledger(self.folder / "ledger.jsonl")
        try:
            return self._train(ledger)
        finally:
            ledger.close()

    def _train(self, ledger: Ledger) -> str:
        records, pending = ledger.chain.records, ledger.chain.pending()
        if pending is not None:
            self._carry_out(ledger, pending)
        state = self._load(max(self.disk, default=-1))
        watch, known = Watch(self.policy), 0
        while state["step"] < STEPS:
            step = state["step"]
            if "watch" in state:
                watch.load(state["watch"])
                known = state["known"]
            news = news_at(step, known, records)
            if news is not None:
                watch.rolled_back(news)
            positions = self._positions(step, actions(records))
            rate, _ = rate_factors(actions(records), step)
            signals = self._signals(step, positions)
            keep = watch.limits().admit(signals)
            verdict = watch.observe(signals)
            weights = f"{state['weights']} {positions} {rate}" if keep else state["weights"]
            after = {"step": step + 1, "weights": hashlib.sha256(weights.encode()).hexdigest() if keep else weights,
                     "known": len(records)}  # fmt: skip
            action = self._decide(step, verdict, actions(records))
            if action.kind in (GO_ON, SKIP):
                state = after
                if state["step"] % INTERVAL == 0:
                    self.disk[state["step"]] = json.dumps({**state, "watch": watch.state()})
                continue
            self._crash("before the intent")
            intent = ledger.append(INTENT, {"action": action.to_plain(), "verdict": verdict.to_plain()})
            self._crash("after the intent")
            state = self._carry_out(ledger, intent)
            if action.kind == STOP:
                return action.reason
        return str(state["weights"])

    def _carry_out(self, ledger: Ledger, intent: Record) -> dict[str, Any]:
        action = Action.from_plain(intent.body["action"])
        if action.kind == ROLLBACK:
            self.disk = {step: text for step, text in self.disk.items() if step <= action.to}
        state = self._load(action.to if action.kind == ROLLBACK else -1)
        self._crash("before the commit")
        ledger.append(COMMIT, {"intent": intent.seq})
        self._crash("after the commit")
        return state

    def _load(self, step: int) -> dict[str, Any]:
        if step > 0:
            return json.loads(self.disk[step])  # type: ignore[no-any-return]
        return {"step": 0, "weights": "", "watch": Watch(self.policy).state(), "known": 0}

    def _decide(self, step: int, verdict: Verdict, done: list[Action]) -> Action:
        fit = [0, *self.disk]
        return decide(
            done,
            step,
            verdict,
            [Snapshot(old, is_start=old == 0) for old in fit],
            self.policy,
            lambda _, trained: trained * BATCH,
            lambda: STEPS * BATCH,
        )

    def _positions(self, step: int, done: list[Action]) -> list[int]:
        skips = skips_after(self.given, done)
        return [skips.position(step * BATCH + slot) for slot in range(BATCH)]

    def _signals(self, step: int, positions: list[int]) -> Signals:
        hurt = len(set(positions) & set(self.poison))
        loss = 2.0 + 0.02 * math.sin(1.7 * sum(positions)) + hurt
        return Signals(step, loss, 0.5 * math.exp(1.5 * hurt), True)

    def _crash(self, where: str) -> None:
        if self.crash_at == where:
            self.crash_at = ""
            raise Crash


def decided(run: Run) -> list[Action]:
    """Return what a run decided."""
    return actions(read_ledger(run.folder / "ledger.jsonl")[0].records)


def skip_list(run: Run) -> Skips:
    """Return what a run passed over in the end."""
    return skips_after(Skips(), decided(run))


def positions(ranges: Iterable[Range]) -> set[int]:
    return {position for first, stop in ranges for position in range(first, stop)}


WHERE = ["", "before the intent", "after the intent", "before the commit", "after the commit"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("skip", ["drop", "defer"])
def test_a_run_that_rolled_back_is_the_run_that_was_given_its_skip_list(tmp_path: Path, where: str, skip: str) -> None:
    """The oracle, and again when the process dies at any moment of the rollback."""
    policy = StabilityConfig(**{**vars(POLICY), "skip": skip})
    poison = set(range(700, 724))
    run = Run(tmp_path, poison, policy, crash_at=where)
    if where:
        with pytest.raises(Crash):
            run.train()
    found = run.train()
    skips = skip_list(run)
    assert poison - positions(skips.dropped) - positions(skips.deferred) == set()
    other = tmp_path / "told"
    other.mkdir()
    told = Run(other, poison if skip == "drop" else (), policy, given=skips)
    assert told.train() == found
    assert decided(told) == []
    kinds = [action.kind for action in decided(run)]
    assert kinds == [ROLLBACK] * (1 if skip == "drop" else 2)  # put off, they are as bad at the end, and dropped


@given(seed=st.integers(0, 10**6), length=st.integers(12, 60), where=st.sampled_from(WHERE))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_poison_of_any_length_is_got_over(
    tmp_path_factory: pytest.TempPathFactory, seed: int, length: int, where: str
) -> None:
    first = 200 + seed % 1000
    whole = Run(tmp_path_factory.mktemp("whole"), set(range(first, first + length)))
    found = whole.train()
    assert positions(skip_list(whole).dropped)
    crashed = Run(tmp_path_factory.mktemp("crashed"), whole.poison, crash_at=where)
    if where:
        with pytest.raises(Crash):
            crashed.train()
        if where == "after the commit":  # the state that was gone back to is lost too: an older one must do
            crashed.disk.pop(decided(crashed)[-1].to, None)
    assert crashed.train() == found
    assert skip_list(crashed) == skip_list(whole)


def test_poison_without_end_stops_the_run_within_its_budget(tmp_path: Path) -> None:
    run = Run(tmp_path, range(700, 10**5), StabilityConfig(**{**vars(POLICY), "settle": 200}))
    assert "stability.tries=3 allows no further rollback" in run.train()
    assert [action.kind for action in decided(run)] == [ROLLBACK] * 3 + [STOP]
