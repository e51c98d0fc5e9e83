"""What follows from a ledger: data passed over, and the learning rate at each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LedgerError
from engine.stability.actions import (
    LOWER,
    ROLLBACK,
    SKIP,
    STOP,
    Action,
    actions,
    check_intents,
    news_at,
    rate_factors,
    rewarms_at,
    skips_after,
)
from engine.stability.ledger import COMMIT, INTENT, NOTE, Chain, Ledger, _encode, read_ledger
from engine.stability.signals import ROLLBACK as BACK_TO
from engine.stability.signals import Verdict
from engine.stability.skips import Skips

BACK = Action(ROLLBACK, 102, onset=100, to=60, first=800, stop=1200)


def test_decisions_come_from_intents_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    decided = [BACK, Action(LOWER, 300, lr_factor=0.5), Action(STOP, 400, reason="enough")]
    for action in decided[:2]:
        seq = ledger.append(INTENT, {"action": action.to_plain(), "verdict": {}}).seq
        ledger.append(NOTE, {"text": "in between"})
        ledger.append(COMMIT, {"intent": seq})
    ledger.append(INTENT, {"action": decided[2].to_plain()})
    ledger.close()
    chain, _ = read_ledger(tmp_path / "ledger.jsonl")
    assert actions(chain.records) == decided


def test_data_passed_over_add_up_in_the_order_of_the_decisions() -> None:
    again = Action(ROLLBACK, 103, onset=101, to=50, first=780, stop=980)
    skips = skips_after(Skips(), [BACK, Action(LOWER, 200), again])
    assert skips.dropped == ((780, 1380),)  # the second counts samples of a run that already passed over the first
    put_off = skips_after(Skips(), [replace(BACK, planned=2000)])
    assert (put_off.dropped, put_off.deferred) == ((), ((800, 1200),))
    assert skips_after(skips, [Action(ROLLBACK, 9, to=1)]) == skips


def test_a_lowered_rate_is_held_and_rises_back() -> None:
    lower = Action(LOWER, 99, lr_factor=0.5, clip_factor=0.1, hold=10, rewarm=4)
    rates = [rate_factors([lower], step) for step in (99, 100, 109, 110, 111, 112, 113, 114, 500)]
    assert [rate for rate, _ in rates] == pytest.approx([1, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])
    assert [clip for _, clip in rates] == [1, 0.1, 0.1, 1, 1, 1, 1, 1, 1]
    forever = Action(ROLLBACK, 99, to=50, lr_factor=0.9)
    assert [rate_factors([forever, forever], step)[0] for step in (49, 50, 10**9)] == pytest.approx([1, 0.81, 0.81])
    at_once = Action(LOWER, 99, lr_factor=0.5, hold=10)
    assert [rate_factors([at_once], step)[0] for step in (109, 110)] == [0.5, 1.0]


def test_when_a_lowered_rate_begins_to_rise() -> None:
    lower = Action(LOWER, 99, lr_factor=0.5, hold=10, rewarm=4)
    assert [step for step in range(80, 140) if rewarms_at([lower], step)] == [110]
    assert [step for step in range(50, 140) if rewarms_at([lower, BACK], step)] == [70]
    assert not any(rewarms_at([replace(lower, hold=None)], step) for step in range(200))


def test_a_lowering_goes_back_with_a_later_rollback() -> None:
    lower = Action(LOWER, 99, lr_factor=0.5, hold=10)
    assert [rate_factors([lower, BACK], step)[0] for step in (59, 60, 69, 70, 100)] == [1.0, 0.5, 0.5, 1.0, 1.0]
    assert [rate_factors([BACK, lower], step)[0] for step in (60, 99, 100)] == [1.0, 1.0, 0.5]


def test_what_states_have_to_be_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for to, onset in ((100, 150), (80, 151), (200, 260)):
        action = Action(ROLLBACK, onset + 2, onset=onset, to=to)
        body = {"action": action.to_plain(), "verdict": Verdict(BACK_TO, onset=onset).to_plain()}
        ledger.append(COMMIT, {"intent": ledger.append(INTENT, body).seq})
    ledger.close()
    records = ledger.chain.records
    news = {step: news_at(step, 0, records) for step in (79, 80, 81, 100, 200, 201)}
    assert {step: verdict.onset for step, verdict in news.items() if verdict} == {80: 151, 200: 260}
    assert news_at(80, 4, records) is None
    assert news_at(100, 0, records[:2]) == Verdict(BACK_TO, onset=150)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": Action(ROLLBACK, 5, to=2).to_plain()},
        {"action": Action(SKIP, 5).to_plain(), "verdict": Verdict().to_plain()},
        {"action": {**Action(ROLLBACK, 5, to=2).to_plain(), "stop": "9"}, "verdict": Verdict().to_plain()},
        {"action": {**Action(ROLLBACK, 5, to=2).to_plain(), "later": 1}, "verdict": Verdict().to_plain()},
    ],
)
def test_a_decision_of_another_version_is_refused_in_one_line(body: dict[str, Any]) -> None:
    chain = Chain()
    chain.add(_encode(0, 0.0, INTENT, body, chain.tip))
    with pytest.raises(LedgerError, match=r"ledger\.jsonl: line 1 is no decision that this version knows; go on"):
        check_intents(chain)
