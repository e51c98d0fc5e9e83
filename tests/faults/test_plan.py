"""Plans of faults: what is understood, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ConfigError
from engine.faults.plan import KINDS, read_plan
from engine.flight.phases import PHASES


def test_an_entry_is_read_with_its_defaults() -> None:
    (fault,) = read_plan([{"what": "kill", "rank": 1, "step": 7, "phase": "optimizer"}], world=2)
    assert (fault.what, fault.rank, fault.step, fault.where, fault.attempt) == ("kill", 1, 7, "optimizer", 0)
    assert fault.describe() == "kill: rank 1, step 7, optimizer"
    (every,) = read_plan([{"what": "sleep", "seconds": 1, "step": 3, "steps": 4, "attempt": None}])
    assert every.describe() == "sleep: every rank, steps 3 to 6, forward, at every start"
    assert read_plan([]) == []


def test_every_kind_happens_in_a_phase_there_is() -> None:
    assert set(KINDS.values()) <= set(PHASES)


@pytest.mark.parametrize(
    ("entry", "answer"),
    [
        ("kill", "faults[0]=kill does not say what; write {what: kill, rank: 1, step: 7}."),
        ({"rank": 1}, "does not say what"),
        ({"what": "kil"}, "faults[0].what=kil is unknown. Did you mean 'kill'?"),
        ({"what": "kill", "stage": 1}, "faults[0] has an unknown key 'stage'. Did you mean"),
        ({"what": "kill", "step": "7"}, "faults[0].step=7 is not a whole number."),
        ({"what": "kill", "rank": True}, "faults[0].rank=True is not a whole number."),
        ({"what": "kill", "rank": 2}, "faults[0].rank=2 is none of the 2 ranks; write 0 to 1."),
        ({"what": "kill", "step": -1}, "faults[0].step=-1 is out of range; write 0 or more."),
        ({"what": "kill", "phase": "optimiser"}, "faults[0].phase=optimiser is unknown. Did you mean 'optimizer'?"),
        ({"what": "sleep"}, "faults[0].what=sleep lasts no time; write seconds: 5."),
        ({"what": "signal", "signal": "USR3"}, "faults[0].signal=USR3 is no signal; write TERM, INT, HUP or USR1."),
        ({"what": "poison"}, "faults[0].what=poison needs samples [first, stop); write first: 64, stop: 128."),
        ({"what": "poison", "stop": 4, "how": "burn"}, "faults[0].how=burn is unknown."),
        ({"what": "nan_grad", "phase": "data"}, "faults[0].phase=data is not where nan_grad acts; leave phase out."),
        ({"what": "truncate", "phase": "log"}, "truncate needs a checkpoint; write phase: save.done."),
        ({"what": "no_space", "phase": "log"}, "faults[0].phase=log writes no file; write one of save.shard,"),
        ({"what": "raise", "phase": "save.done"}, "the save is over; write phase: save.shard."),
        ({"what": "collective", "phase": "save.shard"}, "is in the background; write phase: optimizer."),
    ],
)
def test_what_cannot_happen_is_refused_in_one_line(entry: Any, answer: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_plan([entry], world=2)
    assert answer in str(error.value)
    assert "\n" not in str(error.value)
