"""The fault matrix as data: what goes wrong, when, on which layout, and what must come of it.

Rows are those of the fault table (F1 to F27). Points in time, ranks and layouts that a row leaves open are drawn by
the seed, so that other seeds meet other moments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.soak import players
from tests.soak.stage import INTERVAL, STEPS, Stage

_WORLD = {"dp2": 2, "tp2": 2, "pp2": 2, "pp2dp2": 4, "interleaved": 2}
_STEP_PHASES = ("data", "forward", "backward", "grad_reduce", "optimizer", "read", "log", "eval", "save")


@dataclass(frozen=True)
class Case:
    """One case; `play` raises AssertionError when it does not end as it must. `quick` ones stand for their row."""

    row: str
    title: str
    layout: str
    play: Callable[[Stage], None]
    quick: bool = False
    limit_s: float = 240.0


def cases(seed: int) -> Iterator[Case]:
    """Yield every case of the matrix."""
    dice = random.Random(seed)
    yield from _kills(dice)
    yield from _kills_in_saves(dice)
    yield from _launchers()
    yield from _slow_saves(dice)
    yield from _numbers(dice)
    yield from _signals()
    yield from _hangs(dice)
    yield from _neighbours()
    yield from _surroundings(dice)


def _kills(dice: random.Random) -> Iterator[Case]:
    for layout in ("dp2", "tp2", "pp2"):
        for phase in (*_STEP_PHASES, *(["p2p"] if layout == "pp2" else [])):
            rank = dice.randrange(_WORLD[layout])
            at_save = phase in ("eval", "save")
            step = dice.choice([INTERVAL, 2 * INTERVAL]) if at_save else dice.randint(2, STEPS - 1)
            fault = {"what": "kill", "rank": rank, "step": step, "phase": phase}
            quick = (layout, phase) == ("dp2", "optimizer")
            yield Case("F1", f"kill -9 rank {rank}, step {step}, {phase}", layout, players.survive([fault]), quick)
    for layout in ("pp2dp2", "interleaved", "tp2"):
        rank, step = dice.randrange(_WORLD[layout]), dice.randint(2, STEPS - 1)
        fault = {
            "what": "kill",
            "rank": rank,
            "step": step,
            "phase": "forward",
            "seconds": round(dice.random(), 3) / 20,
        }
        yield Case("F1", f"kill -9 rank {rank}, step {step}, any moment", layout, players.survive([fault]))
    twice = [
        {"what": "kill", "rank": 0, "step": 6, "phase": "backward"},
        {"what": "segfault", "rank": 1, "step": 10, "phase": "forward", "attempt": 1},
        {"what": "exit", "rank": 1, "step": 11, "attempt": 2},
    ]
    yield Case("F1", "three deaths, one after the other", "dp2", players.survive(twice))
    yield Case("F23", "kill -9 at every step, saving each", "dp2", players.die_at_every_step, limit_s=600)
    yield Case("F23", "kill -9, then go on with dp=1", "dp2", players.go_on_with_other_replicas)
    yield Case("F1", "a bug in one step, twice: no endless restarts", "tp2", players.give_up)
    yield Case("F1", "torchrun --max-restarts, two deaths", "dp2", players.survive_under_torchrun, limit_s=400)


def _kills_in_saves(dice: random.Random) -> Iterator[Case]:
    for layout in ("dp2", "tp2", "pp2"):
        for phase, rank in (("save.shard", 0), ("save.shard", 1), ("save.manifest", 0), ("save.rename", 0),
                            ("save.prune", 0), ("save.done", 0)):  # fmt: skip
            step = dice.choice([INTERVAL, 2 * INTERVAL])
            fault = {"what": "kill", "rank": rank, "step": step, "phase": phase}
            quick = (layout, phase) == ("tp2", "save.manifest")
            yield Case("F2", f"kill -9 rank {rank}, {phase} of step {step}", layout, players.survive([fault]), quick)
    fault = {"what": "no_space", "rank": 1, "step": 4, "phase": "save.shard"}
    yield Case("F6", "the disk is full for one save", "dp2", players.survive([fault], "step 4 was NOT saved"))


def _launchers() -> Iterator[Case]:
    yield Case("F3", "kill -9 the launcher", "dp2", players.orphan, quick=True)
    yield Case("F3", "kill -9 torchrun: its ranks save and leave", "dp2", players.orphan_of_torchrun("KILL"))
    yield Case("F11", "SIGUSR1 to torchrun: its ranks save and leave", "dp2", players.orphan_of_torchrun("USR1"))


def _slow_saves(dice: random.Random) -> Iterator[Case]:
    slow = {"what": "sleep", "rank": 1, "step": 1, "steps": STEPS, "phase": "save.shard", "seconds": 1.0}
    yield Case("F7", "saves slower than their interval", "dp2", players.survive([slow], "checkpoint.interval=2"))
    kill = {"what": "kill", "rank": 0, "step": 7, "phase": "forward"}
    yield Case("F7", "kill -9 while a save is running", "tp2", players.survive([slow, kill]))
    term = {"what": "signal", "rank": 1, "step": dice.randint(5, 7), "phase": "data"}
    yield Case("F7", "SIGTERM while a save is running", "dp2", players.stop_and_go_on([slow, term], 0))


def _numbers(dice: random.Random) -> Iterator[Case]:
    for layout in ("dp2", "tp2", "pp2"):
        step, rank = dice.randint(2, STEPS - 1), dice.randrange(2)
        once = {"what": "nan_grad", "rank": rank, "step": step}
        play = players.survive([once], "had computed wrongly")
        yield Case("F8", f"NaN gradient on rank {rank}, step {step}, once", layout, play, layout == "dp2")
        play = players.skip_alike({"what": "nan_grad", "step": step, "again": True})
        yield Case("F8", f"NaN gradient on either rank, step {step}, always", layout, play)
    yield Case("F8", "infinite loss on the last stage", "pp2", players.skip_once({"what": "inf_loss", "rank": 1}))
    for layout in ("dp2", "pp2", "tp2"):
        flip = {"what": "flip_grad", "rank": 1, "step": dice.randint(2, STEPS - 1), "bit": dice.randrange(32)}
        play = players.survive([flip], "stability.recheck_interval=1", "had computed wrongly")
        yield Case("F10", f"bit {flip['bit']} of a summed gradient, step {flip['step']}", layout, play)
    flip = {"what": "flip_weight", "rank": 1, "step": 6, "bit": dice.randrange(32)}
    play = players.survive([flip], "stability.drift_interval=1", "hold other copies of weights than their peers")
    yield Case("F10", f"bit {flip['bit']} of a copied weight", "dp2", play)
    for phase in ("rollback.intent", "rollback.load", "rollback.commit"):
        for rank in (0, 1):
            kill = {"what": "kill", "rank": rank, "step": 6, "phase": phase}
            play = players.survive([flip, kill], "stability.drift_interval=1", "restart 1 of")
            quick = (phase, rank) == ("rollback.load", 0)
            yield Case("F26", f"kill -9 rank {rank} in a rollback, {phase}", "dp2", play, quick)


def _signals() -> Iterator[Case]:
    for number, code in (("INT", 0), ("TERM", 75), ("USR1", 75), ("HUP", 75)):
        yield Case("F11", f"SIG{number} to the launcher", "dp2", players.signal_launcher(number, code))
    for number in ("TERM", "USR1", "INT"):
        fault = {"what": "signal", "signal": number, "rank": 1, "step": 6, "phase": "backward"}
        yield Case("F11", f"SIG{number} to one rank", "tp2", players.stop_and_go_on([fault], 0))
    yield Case("F11", "a second Ctrl-C", "dp2", players.interrupt_twice)


def _hangs(dice: random.Random) -> Iterator[Case]:
    short = "parallel.timeout_s=6"
    for what, phase, layout in (
        ("stop", "optimizer", "dp2"), ("stop", "forward", "tp2"), ("hang", "log", "pp2"), ("hang", "backward", "dp2"),
        ("hold_gil", "data", "tp2"), ("sleep", "backward", "pp2"), ("hang", "eval", "dp2"), ("stop", "p2p", "pp2"),
    ):  # fmt: skip
        rank = 1 if phase in ("log", "p2p") else dice.randrange(2)
        step = INTERVAL if phase == "eval" else dice.randint(5, STEPS - 1)
        fault = {"what": what, "rank": rank, "step": step, "phase": phase, "seconds": 0 if what != "sleep" else 600}
        if what == "hold_gil":
            fault["seconds"] = 600
        play = players.survive([fault], short, f"rank {rank} does not come on", "restart 1 of at most 3")
        yield Case(
            "F12", f"{what}: rank {rank}, step {step}, {phase}", layout, play, what == "stop" and layout == "dp2"
        )
    alone = {"what": "hang", "rank": 0, "step": 6, "phase": "log"}
    yield Case("F12", "hang, stacks are kept", "dp2", players.hang_leaves_stacks(alone))
    slow = {"what": "sleep", "rank": 1, "step": 1, "steps": STEPS, "seconds": 0.4}
    yield Case("F12", "a straggler is named, nothing else", "dp2", players.survive([slow], "rank 1 is slow"))
    odd = {"what": "collective", "rank": 1, "step": dice.randint(5, STEPS - 1)}
    play = players.survive([odd], short, "restart 1 of at most 3")
    yield Case("F13", "a collective that one rank alone makes", "dp2", play)
    yield Case("F13", "the same over stages", "pp2", play)


def _neighbours() -> Iterator[Case]:
    yield Case("F14", "a second job in the same run folder", "dp2", players.second_job)
    yield Case("F14", "MASTER_PORT of the environment is taken", "dp2", players.port_taken)


def _surroundings(dice: random.Random) -> Iterator[Case]:
    memory = {"what": "memory", "rank": dice.randrange(2), "step": 6}
    yield Case("F25", "out of memory, once", "dp2", players.survive([memory], "ran out of memory in step 6, forward"))
    yield Case("F25", "64 open files", "dp2", players.few_files)
    yield Case("F21", "the clock is set back an hour", "tp2", players.clock_set_back)
    yield Case("F22", "wandb cannot be imported", "dp2", players.broken_wandb)
    yield Case("F22", "the flight record cannot be written", "dp2", players.no_flight_folder)
    yield Case("F27", "spaces, Unicode and long names", "dp2", players.odd_names)
    yield Case("F27", "no HOME, umask 077", "dp2", players.bare_environment)
    yield Case("F27", "the working folder is gone", "dp2", players.no_working_folder)
