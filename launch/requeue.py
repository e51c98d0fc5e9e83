"""At the end of a job of SLURM's: say what happened, and by the exit code whether it is to be requeued (0: yes).

    python launch/requeue.py run=runs/mine code=75 state="RUNNING None" most=10      a line of the job's script

`code` is that of the ranks (launch/codes.py), `state` what squeue says of the job, `most` is cluster.max_requeues. A
run that was asked to stop goes on after its requeue; after a failure, a job is requeued while that brings progress.
What was decided is in `requeues.jsonl`, beside the job's script.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.errors import ConfigError, did_you_mean
from engine.monitor.attempts import records
from launch.codes import DONE, INTERRUPTED, LADDER_STOP, UNFINISHED, USER_ERROR
from launch.progress import is_stuck, progress
from launch.script import run_script

KEYS = ("run", "code", "state", "most")
_FINAL = {
    DONE: "is done", USER_ERROR: "cannot run as it is", LADDER_STOP: "was stopped by the stability ladder",
    INTERRUPTED: "was interrupted",
}  # fmt: skip
_UNHEARD = {128 + number for number in (signal.SIGUSR1, signal.SIGTERM)}  # asked to stop before anybody could hear it
_IDLE_STOPS = 3  # stops in a row without progress: its time is too short for the run to come any further


@dataclass(frozen=True)
class End:
    """How a job ended, and what was made of it."""

    code: int
    reached: tuple[int, int]
    requeued: bool
    job: str
    time: float


def main(arguments: list[str] | None = None) -> int:
    """Decide, note it, say it."""
    return run_script(_decide, __doc__, arguments)


def _decide(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    for key in given:
        if key not in KEYS:
            raise ConfigError(f"unknown setting '{key}'; write key=value.{did_you_mean(key, KEYS)}")
    folder, code = Path(given["run"]), int(given["code"])
    notes = folder / "slurm" / "requeues.jsonl"
    job = os.environ.get("SLURM_JOB_ID", "?")
    reached, before = progress(folder), _read(notes, job)
    again, why = decide(code, given["state"], reached, before, int(given["most"]))
    print(f"trimaran: job {job} {why}", flush=True)
    with open(notes, "a") as file:
        file.write(json.dumps(asdict(End(code, reached, again, job, time.time()))) + "\n")
    return 0 if again else 1


def decide(code: int, state: str, reached: tuple[int, int], before: list[End], most: int) -> tuple[bool, str]:
    """Return whether a job is to be requeued, and what to say of it; `before` are its earlier ends, oldest first."""
    status, _, reason = state.partition(" ")
    at = f"at step {reached[1]}"
    if code in _FINAL:
        return False, f"{_FINAL[code]} (code {code}, {at}): not requeued."
    if status in ("CANCELLED", "COMPLETING") and reason not in ("TimeLimit", "Preempted"):
        saved = "has saved" if code == UNFINISHED else f"ended with code {code}"
        return False, f"was cancelled and {saved} {at}: not requeued; submit its script again to go on."
    stuck = 0
    for end in reversed(before):
        if end.reached < reached:
            break
        stuck += 1
    if code == UNFINISHED or code in _UNHEARD:
        cause = {"TimeLimit": "has run out of time", "Preempted": "is preempted"}.get(reason, "was asked to stop")
        if stuck >= _IDLE_STOPS:
            return False, f"{cause} {at}, as {stuck} times before: not requeued; write more cluster.time."
        saved = " and has saved" if code == UNFINISHED else ""
        return True, f"{cause}{saved} {at}: requeued, to go on from there."
    failures = sum(end.code not in (UNFINISHED, *_UNHEARD) for end in before)
    if failures >= most:
        return False, f"ended with code {code} {at}: not requeued, cluster.max_requeues={most} failures were."
    if is_stuck(code, stuck):
        return False, f"ended with code {code} {at}, no further than before: not requeued; find the cause."
    return True, f"ended with code {code} {at}: requeued, failure {failures + 1} of at most {most}."


def _read(notes: Path, job: str) -> list[End]:
    """Return the ends of `job`, whose number stays when it is requeued."""
    ends = [End(**record) for record in records(notes) if record["job"] == job]
    return [replace(end, reached=(end.reached[0], end.reached[1])) for end in ends]


if __name__ == "__main__":
    sys.exit(main())
