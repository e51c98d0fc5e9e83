"""Where the states of a run come from and go to: fresh weights, checkpoints, and copies in host memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from engine.checkpoint import folder as folders
from engine.checkpoint import resume, state
from engine.checkpoint.memory import HostStates
from engine.checkpoint.reader import Checkpoint, find_checkpoint, open_checkpoint, read_manifest
from engine.checkpoint.writer import CheckpointWriter
from engine.config import Config
from engine.errors import CheckpointError, StabilityStop
from engine.flight import phases
from engine.flight.recorder import FLIGHT
from engine.guard import Guard
from engine.mesh import Mesh
from engine.monitor.monitor import Monitor
from engine.optim.scaler import LossScaler
from engine.parallel.collectives import MIN, all_reduce
from engine.stability.actions import ROLLBACK, STOP, Action
from engine.stability.ladder import Snapshot, is_healthy
from engine.step import Stepper


class States:
    """Progress of a run, `step` trained steps and `consumed` trained samples, and its states on disk and in memory.

    All ranks call its methods together. `about` is what every checkpoint says of the run besides its configuration.
    """

    def __init__(
        self, config: Config, folder: Path, mesh: Mesh, stepper: Stepper, guard: Guard, monitor: Monitor,
        about: dict[str, Any],
    ) -> None:  # fmt: skip
        self.config, self.mesh, self.stepper, self.guard, self.monitor = config, mesh, stepper, guard, monitor
        self.folder, self.about = folder / "checkpoints", about
        settings = config.checkpoint
        self.writer = CheckpointWriter(
            self.folder, rank=mesh.world.rank, world=mesh.world.size,
            store=dist.distributed_c10d._get_default_store(), keep_last=settings.keep_last,
            keep_every=settings.keep_every, asynchronous=settings.asynchronous,
        )  # fmt: skip
        self._entries = list(state.entries(stepper.optimizer))  # once: they are views of the state as it goes on
        wanted = config.stability.watch and config.stability.rollback
        policy = config.stability
        budget = policy.snapshot_mb * 2**20 if wanted else 0.0
        self.memory = HostStates(stepper.state_tensors(), budget, most=policy.snapshots)
        self.memory.room = self._least(self.memory.room)  # a state is one only where each rank keeps its part
        self.step, self.consumed = 0, 0
        self.changes: list[str] = []  # of the configuration, since the checkpoint that is continued
        self.scaler = _scaler(config)
        self.last_save = self.last_saved = -1  # the step of the newest save, and of the newest that succeeded

    # -- start and return --------------------------------------------------------------------------------------

    def begin(self) -> Checkpoint | None:
        """Load the newest checkpoint or draw fresh weights; first carry out what a crash has left undone."""
        pending = self.guard.pending()
        if pending is not None:
            self._abandon(pending)
        checkpoint = self._newest()
        if checkpoint is not None and self._is_own(checkpoint) and self.config.checkpoint.load == "none":
            raise CheckpointError(
                f"{self.folder.parent} already holds step {checkpoint.step}; checkpoint.load=none would overwrite it. "
                "Write another run.name, or checkpoint.load=auto to continue."
            )
        self._restore(checkpoint)
        for change in self.changes:
            self.monitor.event(change)
        if pending is not None:
            self.guard.commit()
        return checkpoint

    def go_back(self, action: Action) -> str:
        """Carry out a rollback; return where the state came from."""
        FLIGHT.phase(phases.ROLLBACK_LOAD)
        self.writer.wait()
        self.report_saves()  # what has ended so far is of the steps that are gone back from
        self._abandon(action)
        self.last_save = self.last_saved = -1
        self.memory.forget(after=action.to)
        kept = self.memory.find(action.to)
        if kept is not None:
            self.memory.restore(kept)
            self.stepper.optimizer.publish()
            self._resume(kept.step, kept.meta, own=True)
            source = "memory"
        else:
            checkpoint = self._newest()
            self._restore(checkpoint)
            source = "the start" if checkpoint is None else str(checkpoint.path)
        FLIGHT.phase(phases.ROLLBACK_COMMIT)
        self.guard.commit()
        return source

    def give_up(self, action: Action) -> NoReturn:
        """Carry out a stop: set aside what was saved since the trouble began, and raise StabilityStop."""
        self.writer.wait()
        self.report_saves()
        self._abandon(action)
        self.guard.commit()
        self.monitor.end(self.step)  # whatever comes next, a person has to begin it
        raise StabilityStop(action.reason)

    def _abandon(self, action: Action) -> None:
        """Set aside the checkpoints of steps that are gone back from."""
        after = {ROLLBACK: action.to, STOP: action.onset}.get(action.kind)
        if after is not None and self.mesh.world.is_first:
            folders.abandon(self.folder, after)

    def _newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint of the run; without one, what it started from (None: fresh weights)."""
        own = self._find(self.folder)
        load = self.config.checkpoint.load
        if own is not None or load in ("none", "auto"):
            for warning in own.warnings if own is not None else []:
                self.monitor.event(warning)
            return own
        path = Path(load)
        if (path / "manifest.json").exists():
            return open_checkpoint(path)
        found = self._find(path / "checkpoints")
        if found is None:
            raise CheckpointError(f"checkpoint.load={load} is neither a checkpoint nor a run folder that holds one.")
        return found

    def _find(self, folder: Path) -> Checkpoint | None:
        return find_checkpoint(folder, rank=self.mesh.world.rank, world=self.mesh.world.size, agree=self._all_agree)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Take over weights, and unless this is a new run that only starts from them, everything else too."""
        if checkpoint is None:
            self.stepper.initialise()
            self._resume(0, None, own=False)
            return
        own = self._is_own(checkpoint)
        whole = own or self._takes_over_all(checkpoint.meta)
        resume.check_model(checkpoint, self.config, self.about["vocab_size"])
        self.changes = resume.check_run(checkpoint, self.config, self.about["data"]) if whole else []
        self.stepper.forget()
        state.restore(self.stepper.optimizer, checkpoint, moments=whole)
        if whole:
            self.stepper.optimizer.step_count.fill_(float(checkpoint.meta["optimizer_steps"]))
            self.stepper.clipping.load(checkpoint.meta.get("clipping"))
        self._resume(checkpoint.step if whole else 0, checkpoint.meta if whole else None, own=own)
        self.last_save = self.last_saved = checkpoint.step if own else -1

    def _resume(self, step: int, meta: dict[str, Any] | None, *, own: bool) -> None:
        self.scaler = _scaler(self.config)
        self.step, self.consumed = step, 0
        if meta is not None:
            self.consumed = int(meta["consumed_samples"])
            self.scaler.load(meta["loss_scaler"])
        self.guard.restore(None if meta is None else meta.get("stability"), self.consumed, own=own)

    def _is_own(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.path.parent.resolve() == self.folder.resolve()

    def _all_agree(self, mine: bool) -> bool:
        return bool(self._least(int(mine)))

    def _least(self, mine: int) -> int:
        """Return the smallest number that any rank has."""
        least = torch.tensor(mine, device=self.mesh.device.torch_device)
        all_reduce(least, self.mesh.world, MIN)
        return int(least.item())

    # -- keep --------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Copy the state to host memory when it is due."""
        if self.memory.room and self.step % self.config.stability.snapshot_interval == 0:
            self.memory.keep(self.step, self._progress())

    def save(self) -> None:
        """Begin to write a checkpoint of this moment."""
        FLIGHT.phase(phases.SAVE)
        meta = {
            "config": dataclasses.asdict(self.config), **self.about, **self._progress(),
            "optimizer_steps": self.stepper.optimizer.step_count.item(),
            "clipping": self.stepper.clipping.to_plain(),
        }  # fmt: skip
        self.writer.save(self.step, self._entries, meta)
        self.last_save = self.step

    def _progress(self) -> dict[str, Any]:
        return {
            "consumed_samples": self.consumed, "loss_scaler": self.scaler.state(), "stability": self.guard.state(),
        }  # fmt: skip

    def advance(self, batch: int, *, overflow: bool) -> None:
        """Count a step on `batch` samples as trained."""
        self.step, self.consumed = self.step + 1, self.consumed + batch
        self.scaler.update(overflow=overflow)

    def report_saves(self) -> None:
        """Tell of the saves that have ended since."""
        for result in self.writer.poll():
            self.monitor.saved(result)
            if result.ok:
                self.last_saved = result.step

    def finish(self) -> None:
        """Save the last step and wait for it; CheckpointError when it could not be saved."""
        if self.last_save != self.step:
            self.save()
        self.writer.wait()
        self.report_saves()
        if self.last_saved != self.step:
            raise CheckpointError(
                f"The last step, {self.step}, could not be saved (see above); make room in {self.folder.parent} and "
                "start the same command again to repeat the steps after the newest checkpoint."
            )

    def available(self) -> list[Snapshot]:
        """Return the states that could be gone back to, of those that this rank sees."""
        self.writer.wait()
        consumed = {kept.step: int(kept.meta["consumed_samples"]) for kept in self.memory.kept}
        for step in folders.saved_steps(self.folder):
            manifest = read_manifest(folders.step_path(self.folder, step))
            if manifest is not None:
                consumed.setdefault(step, int(manifest.meta["consumed_samples"]))
        found = [Snapshot(step, self._is_healthy(step), samples) for step, samples in consumed.items()]
        start = self._start()
        return found if start is None else [*(state for state in found if state.step != start.step), start]

    def _is_healthy(self, step: int) -> bool:
        return is_healthy(step, self.step, self.guard.troubles, self.config.stability.healthy_after)

    def _start(self) -> Snapshot | None:
        """Return the state that the run began with; None where it began with a checkpoint that is gone."""
        load, consumed = self.config.checkpoint.load, 0
        step = 0
        if load not in ("none", "auto"):
            path = Path(load)
            if not (path / "manifest.json").exists():
                path = folders.step_path(
                    path / "checkpoints", max(folders.saved_steps(path / "checkpoints"), default=0)
                )
            manifest = read_manifest(path)
            if manifest is None:
                return None
            if self._takes_over_all(manifest.meta):
                step, consumed = manifest.step, int(manifest.meta["consumed_samples"])
        return Snapshot(step, True, consumed, is_start=True)

    def _takes_over_all(self, meta: dict[str, Any]) -> bool:
        """Say whether a run that begins with another's checkpoint takes over more than weights."""
        return self.config.checkpoint.load_optimizer and not meta.get("weights_only", False)  # an imported model

    def close(self, patience_s: float) -> None:
        """Wait for the save that is under way, but not for longer than that."""
        self.writer.close(patience_s)


def _scaler(config: Config) -> LossScaler:
    precision = config.precision
    is_fp16 = precision.dtype == "fp16"
    return LossScaler(
        precision.loss_scale if is_fp16 else 1.0, is_fp16, precision.loss_scale_window, precision.min_loss_scale
    )
