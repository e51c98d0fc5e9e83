"""Train: build everything a run needs, then loop. Reads top to bottom.

A run is a pure function of its configuration and corpus: starting it again in the same run folder continues
from the newest whole checkpoint, on whatever layout it is given now.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from engine.checkpoint import state
from engine.checkpoint.lock import FolderLock
from engine.checkpoint.reader import Checkpoint, find_checkpoint, open_checkpoint
from engine.checkpoint.writer import CheckpointWriter
from engine.config import Config
from engine.data.build import build_data
from engine.data.loader import Loader, validation_batches
from engine.device import Device, local_rank, set_threads
from engine.errors import CheckpointError, explained
from engine.faults.rehearsal import rehearse
from engine.flight import phases
from engine.flight.failures import ECHO, HANG, Hang, describe_hang, kind_of
from engine.flight.recorder import FLIGHT
from engine.flight.stragglers import Stragglers
from engine.flight.watchdog import OnHang, Watchdog, dump_stacks
from engine.mesh import HANG_GRACE_S, Mesh, join_world
from engine.models.transformer import count_parameters
from engine.monitor.flops import Flops
from engine.monitor.monitor import Monitor
from engine.ops import backend
from engine.optim.scaler import LossScaler
from engine.optim.schedules import learning_rate, plan
from engine.parallel.collectives import MIN, all_reduce
from engine.step import Stepper
from engine.validate import resolve_dp, validate

LOST_PEER_S = 3.0


def train(config: Config, on_hang: OnHang = lambda text: os._exit(1)) -> int:
    """Run this rank's part of the training to its end; return the exit code (0 also when asked to stop).

    `on_hang` must end the process; it gets one line when the training of this rank stands still.
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    set_threads(config.run.threads, ranks_here)
    device = Device.pick(config.run.device, local_rank())
    join_world(device, config.parallel.timeout_s)
    try:
        with StopRequest() as stop:
            trainer = Trainer(config, device, on_hang)
            try:
                return trainer.fit(stop)
            except Exception as error:
                trainer.blame(error)
                raise
            finally:
                trainer.close()
    finally:
        dist.destroy_process_group()


class StopRequest:
    """Set by Ctrl-C, SIGTERM or SIGUSR1: finish the step, save, leave. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


class Trainer:
    """A run in progress on this rank."""

    def __init__(self, config: Config, device: Device, on_hang: OnHang) -> None:
        validate(config, dist.get_world_size())
        self.config, self.device = config, device
        parallel = config.parallel
        dp = resolve_dp(config, dist.get_world_size())
        self.mesh = Mesh(pp=parallel.pp, dp=dp, cp=parallel.cp, tp=parallel.tp, device=device)
        self.is_writer = self.mesh.world.is_first
        self.folder = Path(config.run.root) / config.run.name
        with self._in_folder():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FolderLock(self.folder) if self.is_writer else None
        self.monitor = Monitor(config, self.folder, is_writer=self.is_writer)
        self.watchdog = self._open_record(on_hang)
        backend.select(config.ops.backend, config.ops.overrides, device.torch_device.type)
        self.data = build_data(
            config.data, config.train.seed, config.model.vocab_size, config.model.vocab_multiple,
            is_writer=self.is_writer, barrier=dist.barrier, notice=self.monitor.event,
        )  # fmt: skip
        self.stepper = Stepper(config, self.data.vocab, self.mesh, device)
        self.data = rehearse(config.faults, self.mesh.world, self.folder, self.stepper, self.data, self.monitor.event)
        precision = config.precision
        is_fp16 = precision.dtype == "fp16"
        self.scaler = LossScaler(
            precision.loss_scale if is_fp16 else 1.0, is_fp16, precision.loss_scale_window, precision.min_loss_scale
        )
        self.writer = CheckpointWriter(
            self.folder / "checkpoints", rank=self.mesh.world.rank, world=self.mesh.world.size,
            store=dist.distributed_c10d._get_default_store(), keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every, asynchronous=config.checkpoint.asynchronous,
        )  # fmt: skip
        self.flops = Flops(config.model, self.data.vocab, config.data.seq_len, config.monitor.peak_tflops, device)
        self.stragglers = Stragglers(config.monitor.straggler_factor)
        self.step, self.consumed = 0, 0
        self.lost_peer = False
        self.last_save = self.last_saved = -1  # the step of the newest save, and of the newest that succeeded

    def _open_record(self, on_hang: OnHang) -> Watchdog:
        """Keep the flight record in the run folder, once the lock says that it is ours."""
        dist.barrier()
        world, m = self.mesh.world, self.mesh
        axes = f"pp={m.pp.size} dp={m.dp.size} cp={m.cp.size} tp={m.tp.size}"
        failure = FLIGHT.open(self.folder, world.rank, world.size, axes)
        if failure is not None:
            self.monitor.event(f"the flight record is kept in memory only: {failure}")
        # With gloo, those who wait in a collective should fail first: that says who is to blame. NCCL's own end of a
        # late collective says nothing, and comes later (engine.mesh).
        limit_s = self.config.parallel.timeout_s + (0.0 if self.device.is_cuda else HANG_GRACE_S)
        return Watchdog(self.folder, world.rank, limit_s, on_hang)

    # -- start ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the newest checkpoint or draw fresh weights, and say what is about to run."""
        checkpoint = self._find_checkpoint()
        if checkpoint is None:
            self.stepper.initialise()
        else:
            self._restore(checkpoint)
        if self.is_writer and self.data.tokenizer_file is not None:
            with self._in_folder():
                self._keep_tokenizer(self.data.tokenizer_file, continues=checkpoint is not None)
        self._introduce(checkpoint)

    def _keep_tokenizer(self, file: Path, *, continues: bool) -> None:
        """Copy the tokenizer into the run folder, where what is trained on must not change under a run."""
        kept = self.folder / "tokenizer.json"
        if continues and kept.exists() and kept.read_bytes() != file.read_bytes():
            raise CheckpointError(
                f"{self.folder} was trained with another tokenizer than {file}; write data.tokenizer={kept}, or "
                "another run.name to start afresh."
            )
        if file.resolve() != kept.resolve():
            shutil.copyfile(file, kept)

    def _in_folder(self) -> AbstractContextManager[None]:
        """Answer a run folder that cannot be written with one line; once training, only saves tell of it."""
        return explained(
            f"the run folder {self.folder} cannot be written", "make room there, or write another run.name or run.root"
        )

    def _find_checkpoint(self) -> Checkpoint | None:
        own = find_checkpoint(
            self.folder / "checkpoints", rank=self.mesh.world.rank, world=self.mesh.world.size, agree=self._all_agree
        )
        for warning in own.warnings if own is not None else []:
            self.monitor.event(warning)
        load = self.config.checkpoint.load
        if load == "none":
            if own is not None:
                raise CheckpointError(
                    f"{self.folder} already holds step {own.step}; checkpoint.load=none would overwrite it. "
                    "Write another run.name, or checkpoint.load=auto to continue."
                )
            return None
        if own is not None or load == "auto":
            return own
        path = Path(load)
        if (path / "manifest.json").exists():
            return open_checkpoint(path)
        found = find_checkpoint(
            path / "checkpoints", rank=self.mesh.world.rank, world=self.mesh.world.size, agree=self._all_agree
        )
        if found is None:
            raise CheckpointError(f"checkpoint.load={load} is neither a checkpoint nor a run folder that holds one.")
        return found

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take over weights, and unless this is a new run that only starts from them, everything else too."""
        whole = self._is_own(checkpoint) or self.config.checkpoint.load_optimizer
        whole = whole and not checkpoint.meta.get("weights_only", False)  # an imported model
        state.expect_model(checkpoint, self.config.model)
        state.restore(self.stepper.optimizer, checkpoint, moments=whole)
        if whole:
            meta = checkpoint.meta
            self.step, self.consumed = checkpoint.step, int(meta["consumed_samples"])
            self.stepper.optimizer.step_count.fill_(float(meta["optimizer_steps"]))
            self.scaler.load(meta["loss_scaler"])
            self.last_save = self.last_saved = checkpoint.step if self._is_own(checkpoint) else -1

    def _is_own(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.path.parent.resolve() == (self.folder / "checkpoints").resolve()

    def _introduce(self, checkpoint: Checkpoint | None) -> None:
        config, parameters = self.config, count_parameters(self.config.model, self.data.vocab)
        self.monitor.event(f"run folder {self.folder}")
        self.monitor.event(f"layout {self.mesh.describe()}, {config.parallel.schedule}, {self.device.describe()}")
        self.monitor.event(f"model {config.model.name}: {parameters:,} parameters, {config.precision.dtype}")
        self.monitor.event(f"data {self.data.summary}")
        for line in backend.describe(self.device.torch_device.type, self.stepper.dtype):
            self.monitor.event(line)
        if checkpoint is not None:
            self.monitor.event(f"continuing from {checkpoint.path} at step {self.step}")

    # -- loop ----------------------------------------------------------------------------------------------

    def fit(self, stop: StopRequest) -> int:
        """Train until train.steps, validating and saving on the way; return 0."""
        self.start()
        config = self.config
        if self.step >= config.train.steps:
            self.monitor.event(f"nothing left to do: step {self.step} of {config.train.steps} is done")
            return 0
        with self._in_folder():
            self.monitor.begin(self.step, config.train.steps, FLIGHT.born)
        loader = self._loader()
        FLIGHT.is_patient = False
        try:
            for consumed, batch in plan(self.consumed, config.train.steps - self.step, config.train):
                if self._train_step(loader, consumed, batch, stop):
                    self.monitor.event(f"asked to stop: saving step {self.step} and leaving")
                    break
        finally:
            FLIGHT.is_patient = True
            loader.close()
        if self.last_save != self.step:
            self._save()
        self.writer.wait()
        self._report_saves()
        if self.last_saved != self.step:
            raise CheckpointError(
                f"The last step, {self.step}, could not be saved (see above); make room in {self.folder} and start "
                "the same command again to repeat the steps after the newest checkpoint."
            )
        self.monitor.end(self.step)
        FLIGHT.phase(phases.END)
        return 0

    def _train_step(self, loader: Loader, consumed: int, batch: int, stop: StopRequest) -> bool:
        """Make one step and what is due after it; return whether any rank was asked to stop."""
        begin = time.perf_counter()
        FLIGHT.begin_step(self.step + 1)
        FLIGHT.phase(phases.DATA)
        micro_batches = loader.next()
        data_s = time.perf_counter() - begin
        lr = learning_rate(self.step, self.config.optim, self.config.train.steps)
        scale = self.scaler.scale
        result = self.stepper.run(self.step, micro_batches, lr, scale, stop.asked).read()
        self.scaler.update(overflow=not result.applied)
        self.step, self.consumed = self.step + 1, consumed + batch
        elapsed = time.perf_counter() - begin
        FLIGHT.phase(phases.LOG)
        slow = self.stragglers.observe(result.busy_s)
        if slow is not None:
            self.monitor.event(slow)
        tokens = batch * self.config.data.seq_len
        self.monitor.log(
            self.step,
            {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": lr,
                "loss_scale": scale,
                "skipped": int(not result.applied),
                "batch_size": batch,
                "consumed_samples": self.consumed,
                "consumed_tokens": self.consumed * self.config.data.seq_len,
                "step_time_s": elapsed,
                "data_time_s": data_s,
                **self.flops.rates(tokens, elapsed, self.mesh.world.size),
                "memory_gib": self.device.peak_memory() / 2**30,
            },
        )
        if self._due(self.config.train.eval_interval):
            self._evaluate()
        if self._due(self.config.checkpoint.interval):
            self._save()
        self._report_saves()
        return result.stop

    def _due(self, interval: int) -> bool:
        return self.step == self.config.train.steps or (interval > 0 and self.step % interval == 0)

    def _loader(self) -> Loader:
        config = self.config
        return Loader(
            self.data.train, self.data.collate, plan(self.consumed, config.train.steps - self.step, config.train),
            micro_batch=config.train.micro_batch, dp_rank=self.mesh.dp.rank, dp=self.mesh.dp.size,
            prefetch=config.data.prefetch,
        )  # fmt: skip

    def _evaluate(self) -> None:
        """Score the first samples of the validation part; the same samples on every layout."""
        if self.data.valid is None:
            return
        FLIGHT.phase(phases.EVAL)
        begin = time.perf_counter()
        batches = validation_batches(
            self.data.valid, self.data.collate, self.config.train.eval_samples,
            micro_batch=self.config.train.micro_batch, dp_rank=self.mesh.dp.rank, dp=self.mesh.dp.size,
        )  # fmt: skip
        loss = self.stepper.evaluate(batches).item()
        self.monitor.log_validation(self.step, loss, time.perf_counter() - begin)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def _save(self) -> None:
        FLIGHT.phase(phases.SAVE)
        meta = {
            "config": dataclasses.asdict(self.config),
            "vocab_size": self.data.vocab,
            "tokenizer": "tokenizer.json" if self.data.tokenizer_file else None,
            "consumed_samples": self.consumed,
            "optimizer_steps": self.stepper.optimizer.step_count.item(),
            "loss_scaler": self.scaler.state(),
        }
        self.writer.save(self.step, state.entries(self.stepper.optimizer), meta)
        self.last_save = self.step

    def _report_saves(self) -> None:
        for result in self.writer.poll():
            self.monitor.saved(result)
            if result.ok:
                self.last_saved = result.step

    def _all_agree(self, mine: bool) -> bool:
        vote = torch.tensor(int(mine), device=self.device.torch_device)
        all_reduce(vote, self.mesh.world, MIN)
        return bool(vote.item())

    def blame(self, error: Exception) -> None:
        """Raise Hang in place of a time-out of torch's, which does not say who kept the others waiting."""
        self.lost_peer = kind_of(error) in (ECHO, HANG)
        if kind_of(error) == HANG:
            text = describe_hang(self.folder)
            dump_stacks(self.folder)
            raise Hang(text) from error

    def close(self) -> None:
        # A save that only rank 0 has to commit takes a moment; one that needs a lost rank will never end.
        self.writer.close(LOST_PEER_S if self.lost_peer else 30.0)
        self.monitor.close()
        FLIGHT.listener = None
        self.watchdog.close()
        if self.lock is not None:
            self.lock.release()
