"""Run a sweep: Hydra's launchers call a job for each point, which starts the point's ranks and notes how they ended.

The job may be pickled and called in another process, on another machine (hydra-submitit-launcher).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from engine.config import Config
from engine.monitor import attempts
from engine.stop_request import SignalListener
from launch.codes import BUG, DONE, Outcome, in_words
from launch.mistakes import MISTAKES, fail, one_line
from launch.settings import Check, Task
from launch.sweeps.plan import Plan, make_plan
from launch.sweeps.points import ENDED, RUNNING, SWEEPS, WAITING, Point, read_points
from launch.sweeps.table import objective, print_table

_REPO = str(Path(__file__).resolve().parents[2])
Job = Callable[[DictConfig], object]


def sweep(
    task: Task, check: Check, flags: Namespace, overrides: list[Override], run_hydra: Callable[[Job], None]
) -> int:
    """Run `task` for every point and print a table of them; return 0, or the exit code of the first that failed."""
    plan = make_plan(flags, overrides, check)
    for point in plan.points or []:
        plan.point(point).note(WAITING)
    # Batch jobs start in another process, which has to find this package.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_REPO, os.environ.get("PYTHONPATH")]))
    code = DONE
    try:
        run_hydra(_make_job(task, plan))
    except SystemExit as end:  # a signal asked for it
        code = int(end.code or 0)
    except MISTAKES:
        raise
    except Exception as error:  # a job that its launcher lost, or a sweeper that gave up: others may go on
        said = str(error).strip().splitlines() or [""]
        print(f"trimaran: the sweep ended early: {type(error).__name__}: {said[0]}", file=sys.stderr)
        code = BUG
    print_table(plan.folder)
    failed = [point.code for point in read_points(plan.folder) if point.state == ENDED and point.code]
    return code or next(iter(failed), DONE)


def _make_job(task: Task, plan: Plan) -> Job:
    def job(settings: DictConfig) -> float | None:
        number = HydraConfig.get().job.num
        overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        assert isinstance(overrides, list)
        point = plan.point(overrides)
        count = "" if plan.points is None else f" of {len(plan.points)}"
        print(f"trimaran: point {number + 1}{count}: {' '.join(point.overrides)}", flush=True)
        outcome = _run_point(task, plan, point, settings, overrides)
        if outcome.stopped and plan.is_local:
            sys.exit(outcome.code)  # those who stop one point mean the sweep
        return objective(point) if outcome.code == DONE else None

    return job


def _run_point(task: Task, plan: Plan, point: Point, settings: DictConfig, overrides: list[str]) -> Outcome:
    """Run one point and note its end, whatever it is."""
    settings.run.name = f"{SWEEPS}/{plan.name}/{point.name}"
    settings.monitor.wandb_group = settings.monitor.wandb_group or plan.name
    own = [f"run.name='{settings.run.name}'", f"monitor.wandb_group='{settings.monitor.wandb_group}'"]
    kept = [o for o in overrides if o.split("=", 1)[0] not in ("run.name", "monitor.wandb_group")]
    point.note(RUNNING)
    with _Requeue() as requeue:
        try:
            config = OmegaConf.to_object(settings)
            assert isinstance(config, Config)
            outcome = task(config, [*kept, *own])
            reason = "" if outcome.code == DONE else attempts.last_words(point.folder) or in_words(outcome.code)
        except MISTAKES as error:
            reason = one_line(error)
            outcome = Outcome(fail(reason))
        except Exception as error:
            traceback.print_exc()
            outcome, reason = Outcome(BUG), f"{type(error).__name__}: {error}"
    if outcome.code == DONE and outcome.stopped:
        reason = "asked to stop, and has saved"
    point.note(ENDED, outcome.code, reason)
    if requeue.asked:
        point.note(WAITING, reason="preempted or out of time: has saved, and waits to go on")
        try:
            signal.raise_signal(signal.SIGUSR2)  # to submitit, which puts the job back into the queue and exits
        except Exception as error:  # or says why not
            point.note(ENDED, outcome.code, f"asked to stop, and has saved; {error}")
    return outcome


class _Requeue(SignalListener):
    """Keeps SIGUSR2, by which SLURM tells submitit of the end, until the run has saved; elsewhere it does nothing."""

    numbers: tuple[signal.Signals, ...] = (signal.SIGUSR2,)

    def __init__(self) -> None:
        super().__init__()
        self.asked = False
        is_main = threading.current_thread() is threading.main_thread()
        if not (is_main and callable(signal.getsignal(signal.SIGUSR2))):
            self.numbers = ()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        os.kill(os.getpid(), signal.SIGUSR1)  # which the launcher of the ranks understands
