"""Plans of faults: `'+faults=[{what: kill, rank: 1, step: 7, phase: optimizer}]'` on the command line.

A run does nothing of the kind unless its configuration holds such a list, and says so loudly when it does.
"""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigError, did_you_mean
from engine.flight import phases

# What a fault can be, and the phase it begins in when its plan does not say.
KINDS: dict[str, str] = {
    "kill": phases.FORWARD,  # SIGKILL to the rank
    "exit": phases.FORWARD,  # leaves without a word, with code 7
    "segfault": phases.FORWARD,
    "raise": phases.FORWARD,  # a bug
    "memory": phases.FORWARD,  # asks for more memory than there is
    "signal": phases.FORWARD,  # `signal` to the rank: TERM, INT, USR1, ...
    "stop": phases.FORWARD,  # SIGSTOP: hangs, threads and all
    "hang": phases.FORWARD,  # waits for ever, as in a deadlock
    "hold_gil": phases.FORWARD,  # hangs in foreign code that keeps Python's lock, for `seconds`
    "sleep": phases.FORWARD,  # for `seconds`: slow, or with many `steps` a straggler
    "collective": phases.OPTIMIZER,  # one all-reduce that no other rank makes
    "nan_grad": phases.FORWARD,  # this rank's gradient holds a NaN before it is summed over replicas
    "inf_loss": phases.FORWARD,  # the loss of one micro-batch is inf (acts on ranks of the last stage)
    "flip_grad": phases.NORM,  # `bit` of element `element` of this rank's part of the summed gradient
    "flip_weight": phases.LOG,  # of its parameters as the model uses them: copies are written anew by the next update
    "flip_master": phases.LOG,  # of its master weights: permanent
    "rate": phases.OPTIMIZER,  # the learning rate is multiplied by `factor`
    "no_space": phases.SAVE_SHARD,  # the disk is full when this phase of a save begins
    "truncate": phases.SAVE_DONE,  # a shard of the checkpoint just made loses its second half
    "flip_file": phases.SAVE_DONE,  # `bit` of the middle byte of that shard is flipped
    "poison": phases.DATA,  # training samples [first, stop) are spoilt as `how` says, whatever step asks for them
}
HOWS = ("random", "repeat", "shift")
_RAISING = ("raise", "memory", "no_space")  # they end what they interrupt: a save reports it, training fails
_TENSORS = ("nan_grad", "inf_loss", "flip_grad", "flip_weight", "flip_master", "rate")
_FILES = ("truncate", "flip_file")
_IN_SAVES = tuple(phase for phase in phases.PHASES if phase.startswith("save."))


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong: `what`, on which rank, when. Steps count from 1, as the console prints them."""

    what: str  # one of KINDS
    rank: int | None = None  # global rank; null: all of them
    step: int = 1  # the step that is being made; of a save, the step it holds
    steps: int = 1  # this step and the ones after it, so many in all
    phase: str = ""  # of engine.flight.phases; "": the usual one of `what`
    again: bool = False  # also when the step is made once more: what lies in the data comes back, a machine's not
    attempt: int | None = 0  # only after so many restarts; null: each time
    seconds: float = 0.0  # how long sleep and hold_gil last; for kill and stop, how long after the phase has begun
    signal: str = "TERM"  # what=signal
    bit: int = 30  # what=flip_*: counted from the lowest; 30 is the highest of an fp32 exponent
    element: int = 0  # what=flip_* and nan_grad: index into this rank's flat tensor
    factor: float = 100.0  # what=rate
    first: int = 0  # what=poison: global sample ids [first, stop)
    stop: int = 0
    how: str = "random"  # what=poison: random tokens | repeat of one token | shift of all ids, as by another tokenizer

    @property
    def where(self) -> str:
        """The phase in which it happens."""
        return self.phase or KINDS[self.what]

    def describe(self) -> str:
        """Return it in words."""
        if self.what == "poison":
            return f"poison: samples {self.first} to {self.stop - 1} by {self.how}"
        who = "every rank" if self.rank is None else f"rank {self.rank}"
        when = f"step {self.step}" if self.steps == 1 else f"steps {self.step} to {self.step + self.steps - 1}"
        start = "" if self.attempt == 0 else ", at every start" if self.attempt is None else f", restart {self.attempt}"
        return f"{self.what}: {who}, {when}, {self.where}{start}"


def read_plan(entries: Sequence[Any], world: int | None = None) -> list[Fault]:
    """Return the faults of a configuration; ConfigError with one line for the first entry that cannot happen.

    `world` is the number of ranks, None where it is not known yet.
    """
    return [_read(entry, f"faults[{place}]", world) for place, entry in enumerate(entries)]


def _read(entry: Any, name: str, world: int | None) -> Fault:
    if not isinstance(entry, dict) or "what" not in entry:
        raise ConfigError(f"{name}={entry} does not say what; write {{what: kill, rank: 1, step: 7}}.")
    known = {field.name: field for field in dataclasses.fields(Fault)}
    for key, value in entry.items():
        if key not in known:
            raise ConfigError(f"{name} has an unknown key '{key}'.{did_you_mean(str(key), known)}")
        _check_type(f"{name}.{key}", value, str(known[key].type))
    fault = Fault(**entry)
    _check_choice(f"{name}.what", fault.what, KINDS)
    if fault.phase:
        _check_choice(f"{name}.phase", fault.phase, phases.PHASES)
    _check_choice(f"{name}.how", fault.how, HOWS)
    _check_numbers(name, fault, world)
    _check_place(name, fault)
    return fault


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"), "float": ((int, float), "a number"), "str": ((str,), "a word"),
    "bool": ((bool,), "true or false"),
}  # fmt: skip


def _check_type(name: str, value: Any, type_: str) -> None:
    if value is None and type_.endswith("None"):
        return
    wanted, words = _TYPES[type_.split(" | ")[0]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ConfigError(f"{name}={value} is not {words}.")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value} is unknown.{did_you_mean(value, choices)}")


def _check_numbers(name: str, fault: Fault, world: int | None) -> None:
    if fault.rank is not None and not 0 <= fault.rank < (world or math.inf):
        raise ConfigError(f"{name}.rank={fault.rank} is none of the {world} ranks; write 0 to {(world or 1) - 1}.")
    for key, least in (("step", 0), ("steps", 1), ("attempt", 0), ("seconds", 0), ("bit", 0), ("element", 0),
                       ("factor", 0)):  # fmt: skip
        value = getattr(fault, key)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{name}.{key}={value} is out of range; write {least} or more.")
    if fault.what in ("sleep", "hold_gil") and fault.seconds == 0:
        raise ConfigError(f"{name}.what={fault.what} lasts no time; write seconds: 5.")
    if fault.what == "poison" and not 0 <= fault.first < fault.stop:
        raise ConfigError(f"{name}.what=poison needs samples [first, stop); write first: 64, stop: 128.")
    if fault.what == "signal" and fault.signal not in {number.name.removeprefix("SIG") for number in signal.Signals}:
        raise ConfigError(f"{name}.signal={fault.signal} is no signal; write TERM, INT, HUP or USR1.")


def _check_place(name: str, fault: Fault) -> None:
    """Raise ConfigError where a fault would do nothing, or break what it is not meant to."""
    where = fault.where
    in_save = where in _IN_SAVES
    if fault.what in _TENSORS and fault.phase not in ("", KINDS[fault.what]):
        raise ConfigError(f"{name}.phase={where} is not where {fault.what} acts; leave phase out.")
    if fault.what in _FILES and where != phases.SAVE_DONE:
        raise ConfigError(f"{name}.phase={where}: {fault.what} needs a checkpoint; write phase: save.done.")
    if fault.what == "no_space" and not in_save:
        raise ConfigError(f"{name}.phase={where} writes no file; write one of {', '.join(_IN_SAVES[:-1])}.")
    if fault.what in _RAISING and where == phases.SAVE_DONE:
        raise ConfigError(f"{name}.phase=save.done: the save is over; write phase: save.shard.")
    if fault.what == "collective" and in_save:
        raise ConfigError(f"{name}.phase={where} is in the background; write phase: optimizer.")
