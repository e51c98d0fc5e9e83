"""What happens in a case, and what must come of it. A player gets the stage and raises AssertionError."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.soak.stage import STEPS, Stage, is_alive, ranks_of
from tests.system.runs import metrics, step_folder, weights

Play = Callable[[Stage], None]
Plan = list[dict[str, Any]]


def plan(faults: Plan) -> str:
    """Return faults as a word of the command line."""
    return "+faults=" + json.dumps(faults).replace('"', "").replace(" ", "")


def survive(faults: Plan, *words: str) -> Play:
    """The run gets through by itself and ends as if nothing had happened.

    `words` with a "=" but no space are overrides, the others must be said.
    """
    overrides = [word for word in words if "=" in word and " " not in word]
    said = [word for word in words if word not in overrides]

    def play(stage: Stage) -> None:
        layout = stage.layout
        folder = stage.scene("case")
        stage.run(folder, layout, plan(faults), *overrides).expect(*said)
        stage.expect_equal(folder, layout)

    return play


def die_at_every_step(stage: Stage) -> None:
    """Killed at step 2 of the first start, step 3 of the second, and so on; each save holds one step more."""
    faults = [
        {"what": "kill", "rank": start % 2, "step": start + 2, "phase": ("forward", "backward", "optimizer")[start % 3],
         "attempt": start}
        for start in range(STEPS - 1)
    ]  # fmt: skip
    folder = stage.scene("case")
    outcome = stage.run(folder, stage.layout, plan(faults), "checkpoint.interval=1", f"run.max_restarts={STEPS}")
    outcome.expect()
    stage.expect_equal(folder, stage.layout)


def go_on_with_other_replicas(stage: Stage) -> None:
    """The same samples come in the same order whatever dp is: the end is the same within rounding."""
    folder = stage.scene("case")
    fault = [{"what": "kill", "rank": 1, "step": 7, "phase": "optimizer"}]
    stage.run(folder, stage.layout, plan(fault), "run.max_restarts=0").expect(code=76)
    stage.run(folder, stage.layout, "parallel.dp=1").expect("at step 4")
    stage.expect_equal(folder, stage.layout, tolerance=1e-3)


def give_up(stage: Stage) -> None:
    """A bug that comes back in the same place is not tried for ever, and what was saved stays."""
    folder = stage.scene("case")
    fault = {"what": "raise", "rank": 1, "step": 6, "phase": "forward", "attempt": None}
    outcome = stage.run(folder, stage.layout, plan([fault]), "run.max_restarts=9")
    outcome.expect("injected: raise", "the run came no further than before", code=1)
    assert outcome.output.count("all ranks start again") == 1
    assert weights(step_folder(folder, 4))


def survive_under_torchrun(stage: Stage) -> None:
    """Two deaths, two restarts: each must come up at the first try."""
    folder = stage.scene("case")
    faults = [
        {"what": "kill", "rank": 1, "step": 6, "phase": "optimizer"},
        {"what": "kill", "rank": 0, "step": 10, "phase": "backward", "attempt": 1},
    ]
    stage.finish(stage.start(_torchrun(stage, folder, plan(faults), restarts=2))).expect()
    stage.expect_equal(folder, stage.layout)


def _torchrun(stage: Stage, folder: Path, *overrides: str, restarts: int = 0) -> list[str]:
    python, *words = stage.words(folder, stage.layout, *overrides)
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            f"--max-restarts={restarts}", *words]  # fmt: skip


def orphan(stage: Stage) -> None:
    """No rank outlives its launcher; the same command goes on."""
    folder = stage.scene("case")
    process = stage.start(stage.words(folder, stage.layout, "train.steps=100000", "optim.decay_steps=12"))
    stage.wait_for(lambda: len(metrics(folder)) >= 6, process)
    pids = ranks_of(folder / "default")
    assert len(pids) == 2
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    stage.wait_for(lambda: not any(map(is_alive, pids)) or time.monotonic() > end)
    assert not any(map(is_alive, pids)), "a rank outlived its launcher"
    again = stage.scene("again")
    (folder / "default").rename(again / "default")
    reached = metrics(again)[-1]["step"]
    if reached < STEPS:
        stage.run(again, stage.layout).expect()
        stage.expect_equal(again, stage.layout)


def orphan_of_torchrun(name: str) -> Play:
    """torchrun dies of a signal that it does not handle: its ranks notice, save and leave."""

    def play(stage: Stage) -> None:
        folder = stage.scene("case")
        process = stage.start(_torchrun(stage, folder, "train.steps=100000", "checkpoint.interval=0"))
        stage.wait_for(lambda: len(metrics(folder)) >= 3, process)
        pids = ranks_of(folder / "default")
        process.send_signal(signal.Signals[f"SIG{name}"])
        stage.wait_for(lambda: not any(map(is_alive, pids)))
        process.wait()
        last = [record["step"] for record in metrics(folder) if "loss" in record][-1]
        assert weights(step_folder(folder, last)), "the last step was not saved"

    return play


def stop_and_go_on(faults: Plan, code: int) -> Play:
    """The run saves and leaves with `code`; the same command without the faults goes on to the same end."""

    def play(stage: Stage) -> None:
        folder = stage.scene("case")
        stage.run(folder, stage.layout, plan(faults)).expect("asked to stop", code=code)
        last = [record["step"] for record in metrics(folder) if "loss" in record][-1]
        assert last < STEPS
        assert weights(step_folder(folder, last))
        stage.run(folder, stage.layout).expect(f"at step {last}")
        stage.expect_equal(folder, stage.layout)

    return play


def signal_launcher(name: str, code: int) -> Play:
    """One checkpoint of the last step, the documented code, and the same command goes on."""

    def play(stage: Stage) -> None:
        folder = stage.scene("case")
        slow = [{"what": "sleep", "rank": 0, "step": 1, "steps": STEPS, "seconds": 0.3}]
        process = stage.start(stage.words(folder, stage.layout, plan(slow)))
        stage.wait_for(lambda: len(metrics(folder)) >= 3, process)
        process.send_signal(signal.Signals[f"SIG{name}"])
        stage.finish(process).expect("asked to stop", code=code)
        last = [record["step"] for record in metrics(folder) if "loss" in record][-1]
        assert weights(step_folder(folder, last))
        stage.run(folder, stage.layout).expect(f"at step {last}")
        stage.expect_equal(folder, stage.layout)

    return play


def interrupt_twice(stage: Stage) -> None:
    """The second Ctrl-C does not wait for anything; what was saved stays whole."""
    folder = stage.scene("case")
    fault = [{"what": "sleep", "rank": 1, "step": 6, "phase": "backward", "seconds": 600}]
    process = stage.start(stage.words(folder, stage.layout, plan(fault)))
    stage.wait_for(lambda: step_folder(folder, 4).is_dir() and _is_sleeping(folder), process)
    pids = ranks_of(folder / "default")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    stage.finish(process).expect(code=130)
    assert time.monotonic() - begin < 30
    assert not any(map(is_alive, pids))
    stage.run(folder, stage.layout).expect("at step 4")
    stage.expect_equal(folder, stage.layout)


def _is_sleeping(folder: Path) -> bool:
    from engine.flight.reader import read_records

    return any((record.step, record.phase) == (6, "backward") for record in read_records(folder / "default"))


def skip_alike(fault: dict[str, Any]) -> Play:
    """All ranks skip the step, whichever rank the fault is on: both runs end alike, bit for bit."""

    def play(stage: Stage) -> None:
        ends = []
        for rank in (0, 1):
            folder = stage.scene(f"case-{rank}")
            stage.run(folder, stage.layout, plan([{**fault, "rank": rank}])).expect()
            skipped = [record["step"] for record in metrics(folder) if record.get("skipped")]
            assert skipped == [fault["step"]], skipped
            ends.append(weights(step_folder(folder, STEPS)))
        assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())

    return play


def skip_once(fault: dict[str, Any]) -> Play:
    """The step is skipped, counted once, and everything after is finite."""

    def play(stage: Stage) -> None:
        folder = stage.scene("case")
        stage.run(folder, stage.layout, plan([{**fault, "step": 5, "again": True}])).expect()
        records = [record for record in metrics(folder) if "loss" in record]
        assert [record["step"] for record in records if record["skipped"]] == [5]
        assert [record["step"] for record in records if record["loss"] is None] == [5]
        assert all(torch.isfinite(tensor).all() for tensor in weights(step_folder(folder, STEPS)).values())

    return play


def hang_leaves_stacks(fault: dict[str, Any]) -> Play:
    """Without restarts: the time-out's exit code, one line, and the stacks of both ranks, the hung one included."""

    def play(stage: Stage) -> None:
        folder = stage.scene("case")
        begin = time.monotonic()
        outcome = stage.run(folder, stage.layout, plan([fault]), "parallel.timeout_s=6", "run.max_restarts=0")
        outcome.expect("rank 0 does not come on (the others wait for it): step 6, log", "rank 1 waits in", code=124)
        assert "Traceback" not in outcome.output
        assert time.monotonic() - begin < stage.limit_s / 2
        stacks = [path.read_text() for path in sorted((folder / "default" / "flight").glob("*.stacks"))]
        assert "_strike" in stacks[0], f"where the hung rank hangs: {stacks[0]}"
        assert "all_reduce" in stacks[1], f"where the other waits: {stacks[1]}"

    return play


def second_job(stage: Stage) -> None:
    """It is refused in one line that names the first, which goes on undisturbed."""
    folder = stage.scene("case")
    first = stage.start(stage.words(folder, stage.layout, plan([{"what": "stop", "rank": 0, "step": 5}])))
    stage.wait_for(lambda: len(metrics(folder)) >= 4, first)
    second = stage.run(folder, stage.layout)
    second.expect("is in use by process", code=2)
    assert second.output.count("trimaran:") == 1
    os.kill(ranks_of(folder / "default")[0], signal.SIGCONT)
    stage.finish(first).expect()
    stage.expect_equal(folder, stage.layout)


def port_taken(stage: Stage) -> None:
    """The launcher finds a port of its own, whatever the environment says."""
    folder = stage.scene("case")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stage.run(folder, stage.layout, MASTER_PORT=port, MASTER_ADDR="127.0.0.1").expect()
    stage.expect_equal(folder, stage.layout)


def few_files(stage: Stage) -> None:
    """It works, or says in one line of an error what ran out."""
    folder = stage.scene("case")
    words = stage.words(folder, stage.layout, "run.max_restarts=0")
    outcome = stage.finish(stage.start(words, limits={resource.RLIMIT_NOFILE: 64}))
    if outcome.code == 0:
        stage.expect_equal(folder, stage.layout)
    else:
        assert "Too many open files" in outcome.output, outcome.output[-2000:]


def clock_set_back(stage: Stage) -> None:
    """Durations come from a clock that cannot be set: no time is negative, and the run is the same."""
    folder = stage.scene("case")
    tricks = folder / "tricks"
    tricks.mkdir()
    (tricks / "sitecustomize.py").write_text(
        "import time\n"
        "true, begin = time.time, time.monotonic()\n"
        "time.time = lambda: true() - (3600 if time.monotonic() - begin > 8 else 0)\n"
    )
    slow = [{"what": "sleep", "rank": 0, "step": 2, "steps": 8, "seconds": 1}]
    path = os.pathsep.join([str(tricks), str(Path(__file__).resolve().parents[2])])
    stage.run(folder, stage.layout, plan(slow), PYTHONPATH=path, TZ="Pacific/Apia").expect("goodput")
    stage.expect_equal(folder, stage.layout)
    for record in metrics(folder):
        assert all(value is None or value >= 0 for value in record.values()), record


def broken_wandb(stage: Stage) -> None:
    """Told once; the training goes on."""
    folder = stage.scene("case")
    tricks = folder / "tricks"
    tricks.mkdir()
    (tricks / "wandb.py").write_text("raise ImportError('broken on purpose')\n")
    path = os.pathsep.join([str(tricks), str(Path(__file__).resolve().parents[2])])
    outcome = stage.run(folder, stage.layout, "monitor.wandb=offline", PYTHONPATH=path)
    outcome.expect("wandb failed and is off for the rest of this run: ImportError: broken on purpose")
    stage.expect_equal(folder, stage.layout)


def no_flight_folder(stage: Stage) -> None:
    """The record is kept in memory; the training goes on."""
    folder = stage.scene("case")
    (folder / "default").mkdir()
    (folder / "default" / "flight").write_text("in the way")
    stage.run(folder, stage.layout).expect("the flight record is kept in memory only")
    stage.expect_equal(folder, stage.layout)


def odd_names(stage: Stage) -> None:
    """Names that file systems allow."""
    folder = stage.scene("a b/ünïcødé 船/" + "/".join(["long" * 12] * 6))
    kill = [{"what": "kill", "rank": 1, "step": 6}]
    outcome = stage.run(folder, stage.layout, plan(kill), "run.name='my run'")
    outcome.expect("restart 1 of")
    stage.expect_equal(folder, stage.layout, name="my run")


def bare_environment(stage: Stage) -> None:
    """Nothing of it is needed, and what is written is for its owner alone."""
    folder = stage.scene("case")
    old = os.umask(0o077)
    try:
        process = stage.start(stage.words(folder, stage.layout), HOME=None, USER=None, LANG=None, LC_ALL="C")
    finally:
        os.umask(old)
    stage.finish(process).expect()
    stage.expect_equal(folder, stage.layout)


def no_working_folder(stage: Stage) -> None:
    """Gone before the start it is refused in one line; gone later it is not missed."""
    folder = stage.scene("case")
    away = folder / "away"
    away.mkdir()
    words = stage.words(folder, stage.layout, plan([{"what": "kill", "rank": 1, "step": 9}]), "run.max_restarts=0")
    words[1] = str(Path(__file__).resolve().parents[2] / words[1])
    process = stage.start(words, cwd=away)
    stage.wait_for(lambda: metrics(folder), process)
    away.rmdir()
    stage.finish(process).expect("rank 1 was ended by SIGKILL", code=76)
    away.mkdir()
    gone = stage.finish(stage.start(["bash", "-c", 'rmdir "$PWD"; exec "$@"', "bash", *words], cwd=away))
    gone.expect("trimaran: the folder this was started in is gone", code=2)
    stage.run(folder, stage.layout).expect("at step 8")
    stage.expect_equal(folder, stage.layout)
