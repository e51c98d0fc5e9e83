"""Where the cases of the fault matrix are played: real runs in folders of their own, held to an undisturbed one."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.system.runs import REPO, command, corpus, environment, metrics, step_folder, weights

STEPS, INTERVAL = 12, 4
LAYOUTS: dict[str, tuple[str, ...]] = {
    "dp2": ("parallel.dp=2",),
    "tp2": ("parallel.tp=2", "parallel.sequence_parallel=true"),
    "pp2": ("parallel.pp=2",),
    "pp2dp2": ("parallel.pp=2", "parallel.dp=2", "train.micro_batch=1"),
    "interleaved": ("parallel.pp=2", "parallel.schedule=interleaved", "parallel.virtual_stages=2", "model.layers=4"),
}
BASE = (f"train.steps={STEPS}", f"checkpoint.interval={INTERVAL}", f"train.eval_interval={INTERVAL}")


class Outcome:
    """How a run ended: exit code and everything it said."""

    def __init__(self, code: int, output: str) -> None:
        self.code, self.output = code, output

    def expect(self, *texts: str, code: int = 0) -> None:
        """Raise AssertionError unless the code and all texts are there."""
        assert self.code == code, f"exit code {self.code}, not {code}:\n{self.output[-3000:]}"
        for text in texts:
            assert text in self.output, f"{text!r} was not said:\n{self.output[-3000:]}"


class Stage:
    """Folders of runs on `layout` below `root`. A case takes `scene(name)` as its run.root; data are shared."""

    def __init__(self, root: Path, layout: str, limit_s: float) -> None:
        self.root, self.layout, self.limit_s = root, layout, limit_s
        self.deadline = time.monotonic() + limit_s
        root.mkdir(parents=True, exist_ok=True)
        corpus(root)

    def scene(self, name: str) -> Path:
        """Return an empty folder."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def words(self, folder: Path, layout: str, *overrides: str) -> list[str]:
        """Return the command line of a run in `folder`."""
        plain = [w for w in command(folder, *BASE, *LAYOUTS[layout]) if not w.startswith(("data.paths", "run.root"))]
        data = (f"data.paths=[{self.root}/corpus.jsonl]", f"data.cache_dir={self.root}/data")
        return [*plain, *data, f"run.root='{folder}'", *overrides]

    def start(
        self, words: Sequence[str], *, limits: dict[int, int] | None = None, cwd: Path = REPO, **extra: str | None
    ) -> subprocess.Popen[str]:
        """Start a process in a session of its own; `extra` is of its environment (None: unset)."""

        def limit() -> None:
            for what, most in (limits or {}).items():
                resource.setrlimit(what, (most, most))

        given = {**environment(), **{key: value for key, value in extra.items() if value is not None}}
        for key in (key for key, value in extra.items() if value is None):
            given.pop(key, None)
        return subprocess.Popen(
            list(words), cwd=cwd, env=given, text=True, start_new_session=True, preexec_fn=limit,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for a process; AssertionError when it outlives the case's time limit."""
        try:
            output, _ = process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()  # its ranks die with it
            output, _ = process.communicate()
            raise AssertionError(f"still there after {self.limit_s:.0f} s:\n{output[-3000:]}") from None
        return Outcome(process.returncode, output)

    def run(self, folder: Path, layout: str, *overrides: str, **extra: str | None) -> Outcome:
        """Run to the end."""
        return self.finish(self.start(self.words(folder, layout, *overrides), **extra))

    def reference(self, layout: str) -> Path:
        """Return the folder of an undisturbed run."""
        folder = self.root / f"reference-{layout}"
        if not step_folder(folder, STEPS).is_dir():
            self.run(self.scene(folder.name), layout).expect()
        return folder

    def expect_equal(self, folder: Path, layout: str, tolerance: float = 0.0, name: str = "default") -> None:
        """Raise AssertionError unless a run ended as the undisturbed one did, each step recorded once."""
        other = self.reference(layout)
        ours, theirs = weights(step_folder(folder, STEPS, name)), weights(step_folder(other, STEPS))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            if tolerance:
                assert (tensor - theirs[key]).norm() <= tolerance * (theirs[key].norm() + 1e-3), key
            else:
                assert torch.equal(tensor, theirs[key]), key
        places = [(record["timeline"], record["step"]) for record in metrics(folder, name) if "loss" in record]
        assert len(set(places)) == len(places), places
        assert {step for _, step in places} == set(range(1, STEPS + 1)), places

    def wait_for(self, true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
        """Wait until something is true; AssertionError at the time limit."""
        while not true():
            assert time.monotonic() < self.deadline, "timed out"
            assert process is None or process.poll() is None, "the run ended before its time"
            time.sleep(0.02)


def ranks_of(folder: Path) -> list[int]:
    """Return the process ids of the ranks alive in a run folder, by its flight records."""
    from engine.flight.reader import read_records

    return [record.pid for record in read_records(folder) if is_alive(record.pid)]


def is_alive(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
