"""What the trainer asks about each step: bounds before it, a verdict after it, and a decision that is on record.

The pure parts (detectors, ladder, ledger, passed-over data) are in `engine.stability`; here they meet a run folder and
a world of ranks. Every rank judges the same reduced numbers by the same code; rank 0 writes what follows into the
ledger and hands the line to the others, so that all act on what is on the disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint.memory import HostStates
from engine.config import Config
from engine.errors import CheckpointError, ConfigError, LedgerError
from engine.flight import phases
from engine.flight.recorder import FLIGHT
from engine.mesh import Mesh
from engine.optim.schedules import plan
from engine.parallel.collectives import broadcast_bytes
from engine.stability.actions import (
    GO_ON,
    LOWER,
    ROLLBACK,
    STOP,
    Action,
    actions,
    check_intents,
    news_at,
    rate_factors,
    rewarms_at,
    skips_after,
)
from engine.stability.ladder import Snapshot, decide
from engine.stability.ledger import COMMIT, INTENT, NOTE, Chain, Ledger
from engine.stability.signals import OK, Limits, Signals, Verdict
from engine.stability.signals import ROLLBACK as GO_BACK
from engine.stability.skips import Skips, union
from engine.stability.watch import Watch

_TROUBLES_KEPT = 256


class Guard:
    """Watch, ladder and ledger of one run; all ranks construct it and call its methods together."""

    def __init__(self, config: Config, folder: Path, mesh: Mesh, notice: Callable[[str], None]) -> None:
        self.config, self.policy = config, config.stability
        self._world, self._device = mesh.world, mesh.device.torch_device
        self._ledger = Ledger(folder / "ledger.jsonl") if mesh.world.is_first else None
        self._chain = self._ledger.chain if self._ledger is not None else Chain(str(folder / "ledger.jsonl"))
        self._share_records()
        if self._ledger is not None and self._ledger.warning:
            notice(self._ledger.warning)
        self._forget()

    def _share_records(self) -> None:
        """Give every rank the lines that rank 0 has read."""
        mine = b"\n".join(record.line for record in self._chain.records)
        lines = broadcast_bytes(mine, self._world, self._device)
        if self._ledger is None:
            for line in lines.split(b"\n") if lines else []:
                self._chain.add(line)
        check_intents(self._chain)

    # -- the state that goes back with a rollback --------------------------------------------------------------

    def _forget(self) -> None:
        """Be as at the very start of a run; the ledger stays."""
        self.watch = Watch(self.policy)
        self.troubles: list[int] = []  # steps with a verdict, for the health of the states before them
        self._known = 0  # records that the detectors' state has been told of
        self._given = _given(self.config)
        self._refresh()

    def _refresh(self) -> None:
        """Follow what the ledger says."""
        self.done = actions(self._chain.records)
        self.skips = skips_after(self._given, self.done)

    def describe(self, memory: HostStates) -> str:
        """Return one line on what is watched and what could be gone back to."""
        policy = self.policy
        if not policy.watch:
            return "stability: not watched; only non-finite steps are skipped"
        if not policy.rollback:
            return "stability: watched; outliers are skipped, nothing is rolled back"
        size = memory.bytes_each / 2**20
        states = f"{memory.room} states of {size:.4g} MiB in memory, one each {policy.snapshot_interval} steps"
        if memory.room == 0:
            states = f"no states in memory: each takes {size:.4g} MiB, stability.snapshot_mb={policy.snapshot_mb:g}"
        return f"stability: watched, with rollback to checkpoints and {states}; {len(self.done)} decisions so far"

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON values: also, for readers, all that is passed over."""
        return {
            "watch": self.watch.state(), "troubles": self.troubles[-_TROUBLES_KEPT:], "known": self._known,
            "tip": self._chain.records[self._known - 1].hash if self._known else None,
            "given": self._given.to_plain(), "skips": self.skips.to_plain(),
        }  # fmt: skip

    def restore(self, plain: dict[str, Any] | None, consumed: int, *, own: bool) -> None:
        """Go on from what `state` returned at `consumed` trained samples, from nothing when None.

        `own` says that it is a state of this run. Of another run's only the detectors and the data passed over are
        taken over: its ledger is not ours. Raises ConfigError where data.skip names data that were trained on.
        """
        self._forget()
        if plain is None:
            return
        try:
            self.watch.load(plain["watch"])
            self.troubles = [int(step) for step in plain["troubles"]]
            self._known = int(plain["known"]) if own else 0
            saved = Skips.from_plain(plain["given" if own else "skips"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint that is continued does not say what was watched ({error!r}); go on from another one."
            ) from None
        self._check_ledger(plain.get("tip"))
        self._given = _joined(saved, self._given, consumed, self.done)
        self._refresh()

    def _check_ledger(self, tip: str | None) -> None:
        """Raise LedgerError where the ledger is not one that goes on from what a checkpoint knew: its line `tip`."""
        records = self._chain.records
        if self._known > len(records):
            what = f"holds {len(records)} records, but the checkpoint that is continued knows of {self._known}"
        elif self._known and tip is not None and tip != records[self._known - 1].hash:
            what = "is not the ledger of the checkpoint that is continued"
        else:
            return
        raise LedgerError(
            f"{self._chain.name} {what}; put back the ledger that the run wrote, or write another run.name."
        )

    # -- around a step -----------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Tell the detectors what the ledger knows of trained step `step` before it is made."""
        records = self._chain.records
        news = news_at(step, self._known, records)
        if news is not None:
            self.watch.rolled_back(news)
        restart = self.config.optim.restart_steps
        if rewarms_at(self.done, step) or (restart and step and step % restart == 0):
            self.watch.warm_up_begins()
        if all(action.to <= step for action in actions(records[self._known :]) if action.kind == ROLLBACK):
            self._known = len(records)

    def limits(self) -> Limits:
        """Return what the next step is held to."""
        return self.watch.limits()

    def factors(self, step: int) -> tuple[float, float]:
        """Return what the learning rate and the clipping norm of trained step `step` are multiplied by."""
        return rate_factors(self.done, step)

    def decide(self, step: int, verdict: Verdict, states: Callable[[], Sequence[Snapshot]]) -> Action:
        """Decide what a verdict on trained step `step` leads to.

        What changes the run is in the ledger when this returns, as an intent. `states()` are what could be gone back
        to, asked for on the rank that writes.
        """
        if verdict.kind == OK:
            return Action(GO_ON, step)
        self.troubles.append(step)
        if verdict.kind != GO_BACK:  # nothing but the verdict matters: every rank comes to the same
            return self._choose(step, verdict, ())
        FLIGHT.phase(phases.ROLLBACK_INTENT)
        answer = b""
        if self._ledger is not None:
            action = self._choose(step, verdict, states())
            if action.kind in (ROLLBACK, LOWER, STOP):
                body = {"action": action.to_plain(), "verdict": verdict.to_plain()}
                answer = self._ledger.append(INTENT, body).line
            else:
                answer = json.dumps(action.to_plain()).encode()
        answer = broadcast_bytes(answer, self._world, self._device)
        plain = json.loads(answer)
        if "seq" not in plain:
            return Action.from_plain(plain)
        self._take_up(answer)
        return self.done[-1]

    def _choose(self, step: int, verdict: Verdict, states: Sequence[Snapshot]) -> Action:
        return decide(self.done, step, verdict, states, self.policy, self._consumed_at, lambda: self._planned(states))

    def _consumed_at(self, state: Snapshot, step: int) -> int:
        """Return the samples trained before `step` by a run that goes on from `state`."""
        consumed = state.consumed
        for begin, batch in plan(state.consumed, step - state.step, self.config.train):
            consumed = begin + batch
        return consumed

    def _planned(self, states: Sequence[Snapshot]) -> int:
        """Return the samples of the whole run, as it is: `states` may know of another beginning, or another batch."""
        newest = max(states, key=lambda state: state.step, default=Snapshot(0))
        return self._consumed_at(newest, self.config.train.steps)

    # -- the ledger --------------------------------------------------------------------------------------------

    @property
    def timeline(self) -> int:
        """How many rollbacks came before this moment."""
        return sum(action.kind == ROLLBACK for action in self.done)

    def pending(self) -> Action | None:
        """Return the decision that is on record, but not known to be carried out."""
        record = self._chain.pending()
        return Action.from_plain(record.body["action"]) if record is not None else None

    def commit(self) -> None:
        """Record that the pending decision is carried out."""
        record = self._chain.pending()
        assert record is not None
        self._append(COMMIT, {"intent": record.seq})

    def note(self, body: dict[str, Any]) -> None:
        """Record something that decides nothing."""
        self._append(NOTE, body)

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        line = self._ledger.append(kind, body).line if self._ledger is not None else b""
        self._take_up(broadcast_bytes(line, self._world, self._device))

    def _take_up(self, line: bytes) -> None:
        if self._ledger is None:
            self._chain.add(line)
        self._refresh()

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()


def signals_of(step: int, loss: float, grad_norm: float, *, scaled: bool) -> Signals:
    """Return what detectors see of a step's reduced numbers."""
    return Signals(step, loss, grad_norm, math.isfinite(loss) and math.isfinite(grad_norm), scaled)


def _given(config: Config) -> Skips:
    """Return the data that the configuration says are passed over; validation has seen that they are ranges."""
    return Skips(dropped=union((int(first), int(stop)) for first, stop in config.data.skip))


def _joined(saved: Skips, wanted: Skips, consumed: int, done: Sequence[Action] = ()) -> Skips:
    """Return the data passed over by a run that goes on with data.skip=`wanted`; ConfigError where it is too late.

    `saved` were given to the run before, in which `done` was decided.
    """
    joined = Skips(union(saved.dropped, wanted.dropped), saved.deferred, saved.planned)
    if not consumed:
        return joined
    newest = skips_after(saved, done).position(consumed - 1)
    if skips_after(joined, done).position(consumed - 1) != newest:
        raise ConfigError(
            f"data.skip={[list(piece) for piece in wanted.dropped]} names samples that were trained on already (the "
            f"newest is {newest}); write ranges after it, or start another run.name from an earlier checkpoint."
        )
    return joined
