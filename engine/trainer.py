"""Train: build everything a run needs, then loop. Reads top to bottom.

A run is a pure function of its configuration, corpus and ledger: starting it again in the same run folder continues
from the newest whole checkpoint, on whatever layout it is given now.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch.distributed as dist

from engine.checkpoint.reader import Checkpoint
from engine.config import Config
from engine.data.build import build_data
from engine.data.loader import Loader, validation_batches
from engine.data.valid_sets import open_valid_sets
from engine.device import Device, local_rank, set_threads
from engine.evaluate.forward import Forward
from engine.evaluate.sets import SetScorer
from engine.faults.rehearsal import rehearse
from engine.flight import phases
from engine.flight.failures import ECHO, HANG, Hang, describe_hang, kind_of
from engine.flight.recorder import FLIGHT
from engine.flight.stragglers import Stragglers
from engine.flight.watchdog import OnHang, Watchdog, dump_stacks
from engine.guard import Guard, signals_of
from engine.machines import Machines
from engine.mesh import HANG_GRACE_S, Mesh, join_world
from engine.models.attention import written_out
from engine.models.transformer import count_parameters
from engine.monitor.flops import Flops
from engine.monitor.metrics import ERROR, INFO, WARN
from engine.monitor.monitor import Monitor
from engine.monitor.pipeline_times import PipelineTimes
from engine.monitor.profile.profiler import Profiler
from engine.monitor.profile.steps import profiled_steps
from engine.monitor.step_parts import PhaseClock
from engine.ops import backend
from engine.optim.schedules import global_batch, learning_rate, plan
from engine.run_folder import RunFolder
from engine.stability.actions import LOWER, ROLLBACK, STOP, Action
from engine.stability.signals import DRIFT, Verdict
from engine.stability.signals import ROLLBACK as GO_BACK
from engine.states import States
from engine.step import Stepper, StepValues
from engine.stop_request import StopRequest
from engine.validate import resolve_dp, validate

_LOST_PEER_S = 3.0


def _leave(text: str) -> None:
    """End a rank that hangs, where nobody is told why."""
    os._exit(1)


def train(config: Config, until: int | None = None, on_hang: OnHang = _leave, stop: StopRequest | None = None) -> int:
    """Run this rank's part of the training to its end, or to step `until`; return 0, also when asked to stop.

    `on_hang` must end the process; it gets one line when the training of this rank stands still. `stop` is what hears
    signals, for those who want to know afterwards.
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    set_threads(config.run.threads, ranks_here)
    device = Device.pick(config.run.device, local_rank())
    join_world(device, config.parallel.timeout_s)
    try:
        with stop or StopRequest() as asked:
            trainer = Trainer(config, device, on_hang)
            try:
                return trainer.fit(asked, until)
            except Exception as error:
                trainer.blame(error)
                raise
            finally:
                trainer.close()
    finally:
        dist.destroy_process_group()


class Trainer:
    """A run in progress on this rank."""

    def __init__(self, config: Config, device: Device, on_hang: OnHang = _leave) -> None:
        validate(config, dist.get_world_size())
        self.config, self.device = config, device
        parallel = config.parallel
        dp = resolve_dp(config, dist.get_world_size())
        self.mesh = Mesh(
            pp=parallel.pp, dp=dp, cp=parallel.cp, tp=parallel.tp, device=device, timeout_s=parallel.timeout_s
        )  # fmt: skip
        self.is_writer = self.mesh.world.is_first
        self.run_folder = RunFolder(Path(config.run.root) / config.run.name, is_writer=self.is_writer)
        self.folder = self.run_folder.path
        self.monitor = Monitor(config, self.folder, is_writer=self.is_writer)
        self.watchdog = self._open_record(on_hang)
        backend.select(config.ops.backend, config.ops.overrides, device.torch_device.type)
        self.data = build_data(
            config.data, config.objective, config.train.seed, config.model.vocab_size, config.model.vocab_multiple,
            is_writer=self.is_writer, barrier=dist.barrier, notice=self.monitor.event,
        )  # fmt: skip
        valid_sets = open_valid_sets(
            config.data, self.data.tokenizer, self.data.tokenizer_file, self.data.vocab,
            is_writer=self.is_writer, barrier=dist.barrier, notice=self.monitor.event,
        )  # fmt: skip
        self.stepper = Stepper(config, self.data.vocab, self.mesh, device)
        forward = Forward(config, self.stepper.chunks, self.stepper.tp, self.mesh)
        self.valid_sets = SetScorer(config.data, valid_sets, self.data.tokenizer, forward)
        self.times = PipelineTimes(self.folder, self.mesh, self.stepper.stopwatch, config.monitor.pipeline_interval)
        self.data = rehearse(config.faults, self.mesh.world, self.folder, self.stepper, self.data, self.monitor.event)
        self.guard = Guard(config, self.folder, self.mesh, self.monitor.event)
        tokenizer = "tokenizer.json" if self.data.tokenizer_file else None
        self.states = States(
            config, self.folder, self.mesh, self.stepper, self.guard, self.monitor,
            {"vocab_size": self.data.vocab, "data": self.data.contents, "tokenizer": tokenizer,
             "world": self.mesh.world.size},
        )  # fmt: skip
        self.flops = Flops(config.model, self.data.vocab, config.data.seq_len, config.monitor.peak_tflops, device)
        self.stragglers = Stragglers(config.monitor.straggler_factor)
        self.clock = PhaseClock(device, pipelined=self.mesh.pp.size > 1)
        profiled = profiled_steps(config.profile.steps, config.train.steps)
        self.profiler = Profiler(profiled, self.folder, self.mesh, device)
        self.lost_peer = False
        self.machines = Machines(config, self.mesh, self.stepper, self.guard, self.monitor)

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
        checkpoint = self.states.begin()
        self.machines.last_equal = self.states.step
        if self.is_writer and self.data.tokenizer_file is not None:
            with self.run_folder.explained():
                self.run_folder.keep_tokenizer(self.data.tokenizer_file, continues=checkpoint is not None)
        self._introduce(checkpoint)

    def _introduce(self, checkpoint: Checkpoint | None) -> None:
        config, parameters = self.config, count_parameters(self.config.model, self.data.vocab)
        self.monitor.event(f"run folder {self.folder}")
        self.monitor.event(f"layout {self.mesh.describe()}, {config.parallel.schedule}, {self.device.describe()}")
        self.monitor.event(f"model {config.model.name}: {parameters:,} parameters, {config.precision.dtype}")
        self.monitor.event(f"data {self.data.summary}")
        for line in backend.describe(self.device.torch_device.type, self.stepper.dtype):
            self.monitor.event(line)
        if why := written_out(config.model):
            self.monitor.event(f"kernels no fused attention: probabilities are held in full for {', '.join(why)}")
        self.monitor.event(self.guard.describe(self.states.memory))
        if checkpoint is not None:
            self.monitor.event(f"continuing from {checkpoint.path} at step {self.states.step}")

    # -- loop ----------------------------------------------------------------------------------------------

    def fit(self, stop: StopRequest, until: int | None = None) -> int:
        """Train until train.steps, or step `until`; validate, save and, where need be, go back on the way; return 0."""
        self.start()
        states, steps = self.states, until or self.config.train.steps
        if states.step >= steps:
            self.monitor.event(f"nothing left to do: step {states.step} of {steps} is done")
            return 0
        with self.run_folder.explained():
            self.monitor.begin(states.step, steps, self.guard.timeline, FLIGHT.born)
        asked = False
        while states.step < steps and not asked:
            loader = self._loader()
            FLIGHT.is_patient = False
            try:
                asked = self._train_until_turned_back(loader, stop, steps)
            finally:
                FLIGHT.is_patient = True
                loader.close()
        if asked:
            self.monitor.event(f"asked to stop: saving step {states.step} and leaving")
        states.finish()
        self.monitor.end(states.step)
        FLIGHT.phase(phases.END)
        return 0

    def _train_until_turned_back(self, loader: Loader, stop: StopRequest, steps: int) -> bool:
        """Make the steps that are left; end after a rollback, whose data come in another order, or when asked to."""
        while self.states.step < steps:
            if self._turned_back_for_drift():
                return False
            with self.profiler.around(self.states.step + 1):
                values, action = self._train_step(loader, stop)
            self._report_profile(action.step + 1)
            if action.kind == ROLLBACK:
                self._go_back(action)
                return False
            if action.kind == STOP:
                self.states.give_up(action)
            if action.kind == LOWER:
                self.monitor.event(f"step {action.step}: {action.reason}: {_lowered(action)}", WARN)
                self.guard.commit()
            self._after_step()
            if values.stop:
                return True
        return False

    def _train_step(self, loader: Loader, stop: StopRequest) -> tuple[StepValues, Action]:
        """Make one step; return its numbers and what they lead to, which is on record but not carried out."""
        begin = time.perf_counter()
        states, config = self.states, self.config
        self.clock.begin()
        FLIGHT.begin_step(states.step + 1)
        FLIGHT.phase(phases.DATA)
        micro_batches, step = loader.next(), states.step
        self.guard.begin(step)
        rate, clip = self.guard.factors(step)
        lr = rate * learning_rate(step, config.optim, config.train.steps)
        scaler = states.scaler
        values = self.machines.make_step(
            step, micro_batches, lr, clip, scaler.scale, scaled=scaler.dynamic, stop=stop.asked, times=self.times
        )
        FLIGHT.phase(phases.LOG)
        parts = self.clock.end()
        slow = self.stragglers.observe(values.busy_s)
        if slow is not None:
            self.monitor.event(slow)
        signals = signals_of(step, values.loss, values.grad_norm, scaled=scaler.dynamic)
        verdict = self.guard.watch.observe(signals)
        if verdict.kind == GO_BACK:  # before data are blamed
            verdict = self.machines.find_drift(step) or verdict
        action = self._decide(step, verdict)
        elapsed, scale = time.perf_counter() - begin, states.scaler.scale
        self.profiler.add(elapsed, parts)
        batch = global_batch(states.consumed, config.train)
        consumed = states.consumed + batch
        if action.kind != ROLLBACK:
            states.advance(batch, overflow=not signals.finite)
        self.monitor.log(
            step + 1,
            {
                "loss": values.loss,
                "grad_norm": values.grad_norm,
                **({} if values.param_norm is None else {"param_norm": values.param_norm}),
                "lr": lr,
                "loss_scale": scale,
                "skipped": int(not values.applied),
                "batch_size": batch,
                "consumed_samples": consumed,
                "consumed_tokens": consumed * config.data.seq_len,
                "step_time_s": elapsed,
                **{f"{part}_time_s": seconds for part, seconds in parts.items()},
                **self.flops.rates(batch * config.data.seq_len, elapsed, self.mesh.world.size),
                "memory_gib": self.device.peak_memory() / 2**30,
            },
        )
        return values, action

    def _report_profile(self, step: int) -> None:
        """Tell what the profile of the steps up to `step` says, once it is whole."""
        summary, trouble = self.profiler.finish(step)
        if summary is not None:
            self.monitor.event(f"{summary.describe()}; traces in {self.folder / 'profile'}")
        if trouble is not None:
            self.monitor.event(trouble)

    def _decide(self, step: int, verdict: Verdict) -> Action:
        """Return what a verdict leads to, which is on record then, and tell of it."""
        action = self.guard.decide(step, verdict, self.states.available)
        if verdict.reason:
            self.monitor.event(f"step {step}: {verdict.reason}: {action.kind}", ERROR if action.kind == STOP else INFO)
        return action

    def _after_step(self) -> None:
        if self._due(self.config.train.eval_interval):
            self._evaluate()
        if self._due(self.config.checkpoint.interval):
            self.states.save()
        self.states.keep()
        self.states.report_saves()

    def _due(self, interval: int) -> bool:
        step = self.states.step
        return step == self.config.train.steps or (interval > 0 and step % interval == 0)

    def _go_back(self, action: Action) -> None:
        lost = action.step + (action.cause != DRIFT) - action.to
        source = self.states.go_back(action)
        passed = f", passing over {action.stop - action.first} samples" if action.first < action.stop else ""
        lowered = f", {_lowered(action)}" if action.lr_factor < 1 or action.clip_factor < 1 else ""
        self.monitor.event(
            f"rolled back from step {action.to + lost} to {self.states.step} ({source}), {lost} steps{passed}{lowered}",
            WARN,
        )
        self.machines.last_equal = self.states.step
        self.monitor.timeline = self.guard.timeline

    def _turned_back_for_drift(self) -> bool:
        """Look for drift when it is due, and go back if there is any."""
        step = self.states.step
        verdict = self.machines.find_drift(step) if self.machines.comparison_is_due(step) else None
        if verdict is None:
            return False
        action = self._decide(step, verdict)
        if action.kind == STOP:
            self.states.give_up(action)
        self._go_back(action)
        return True

    def _loader(self) -> Loader:
        config, states = self.config, self.states
        return Loader(
            self.data.train, self.data.collate, plan(states.consumed, config.train.steps - states.step, config.train),
            micro_batch=config.train.micro_batch, dp_rank=self.mesh.dp.rank, dp=self.mesh.dp.size,
            prefetch=config.data.prefetch, position=self.guard.skips.position,
        )  # fmt: skip

    def _evaluate(self) -> None:
        """Score the first samples of the validation part, the same on every layout, and the sets of data.valid."""
        if self.data.valid is None and not self.config.data.valid:
            return
        FLIGHT.phase(phases.EVAL)
        begin, loss = time.perf_counter(), None
        if self.data.valid is not None:
            batches = validation_batches(
                self.data.valid, self.data.collate, self.config.train.eval_samples,
                micro_batch=self.config.train.micro_batch, dp_rank=self.mesh.dp.rank, dp=self.mesh.dp.size,
            )  # fmt: skip
            loss = self.stepper.evaluate(batches).item()
        scores = {name: score.metrics() for name, score in self.valid_sets.scores().items()}
        self.monitor.log_validation(self.states.step, loss, time.perf_counter() - begin, scores)

    def blame(self, error: Exception) -> None:
        """Raise Hang in place of a time-out of torch's, which does not say who kept the others waiting."""
        self.lost_peer = kind_of(error) in (ECHO, HANG)
        if kind_of(error) == HANG:
            text = describe_hang(self.folder)
            dump_stacks(self.folder, self.mesh.world.rank)
            raise Hang(text) from error

    def close(self) -> None:
        # A save that only rank 0 has to commit takes a moment; one that needs a lost rank will never end.
        self.states.close(_LOST_PEER_S if self.lost_peer else 30.0)
        self.guard.close()
        self.profiler.close()
        self.monitor.close()
        FLIGHT.listener = None
        self.watchdog.close()
        self.run_folder.close()


def _lowered(action: Action) -> str:
    until = "" if action.hold is None else f" for {action.hold} steps"
    tighter = f", clipping by {action.clip_factor:g}" if action.clip_factor < 1 else ""
    return f"the learning rate multiplied by {action.lr_factor:g}{tighter}{until}"
