"""One optimizer step of one rank: its chunks of the model, their schedule, gradients, clipping, update.

Nothing here reads a value back to the host, so the same lines run on CPU, on CUDA without stalls, and on fake
tensors. Data, checkpoints and metrics live in `engine.trainer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from engine.chunks import build_chunks
from engine.config import Config, OptimConfig
from engine.data.batch import MicroBatch
from engine.device import DTYPES, Device
from engine.flight import phases
from engine.flight.recorder import FLIGHT
from engine.flight.stragglers import BusyClock
from engine.mesh import Mesh
from engine.models.transformer import Chunk, make_pass, parameter_shapes
from engine.ops.philox import make_key
from engine.optim.adamw import AdamWSettings, ShardedAdamW
from engine.optim.clipping import CLIP_MODES
from engine.optim.schedules import second_beta
from engine.parallel.buckets import Buckets
from engine.parallel.collectives import all_reduce
from engine.parallel.head_loss import Share
from engine.parallel.linear import TensorParallel
from engine.parallel.pipeline.executor import Executor
from engine.parallel.pipeline.schedule import build, forward_only
from engine.parallel.pipeline.stopwatch import Stopwatch
from engine.parallel.sharding import EMBEDDING, VECTOR, Piece
from engine.stability.signals import NO_LIMITS, Limits


@dataclass
class StepResult:
    """What a step tells, equal on every rank (0-dim tensors on the device, not yet read).

    `loss` is the mean over the unmasked tokens of the global batch, `grad_norm` the global norm before clipping,
    `applied` 1 when the update was made and 0 when every rank skipped it, since something was not finite, beyond the
    limits or too large for the weights; `stop` counts the ranks that were asked to stop; `busy_s` [world] is how long
    each rank worked since the step before. `param_norm` is the norm of the weights before the update, 0 where it was
    not measured.
    """

    loss: Tensor
    grad_norm: Tensor
    applied: Tensor
    stop: Tensor
    busy_s: Tensor
    param_norm: Tensor

    def read(self) -> StepValues:
        """Bring everything to the host: the one synchronisation of a step."""
        values = torch.stack([self.loss, self.grad_norm, self.applied, self.stop, self.param_norm])
        loss, norm, applied, stop, weights, *busy = torch.cat([values, self.busy_s]).tolist()
        return StepValues(loss, norm, bool(applied), bool(stop), tuple(busy), weights or None)


@dataclass(frozen=True)
class StepValues:
    """A `StepResult` on the host."""

    loss: float
    grad_norm: float
    applied: bool
    stop: bool
    busy_s: tuple[float, ...]
    param_norm: float | None


@dataclass
class Gradients:
    """What a forward and backward pass over a global batch left: numbers here, the gradients in the buckets.

    Float64 tensors on the device, equal on every rank and 0-dim where not said: the loss, the global gradient norm
    before clipping, the norm of each tensor ([1] where tensors are not told apart), the number of ranks that were asked
    to stop, [world] the time that each rank worked since the last such pass, and the norm of the weights where it was
    measured; `loss_scale` is what the gradients are still multiplied by.
    """

    step: int
    loss: Tensor
    norm: Tensor
    norms_t: Tensor
    stops: Tensor
    busy_s: Tensor
    param_norm: Tensor
    loss_scale: float


class Stepper:
    """A rank's model, optimizer and schedules. All ranks must construct it and call its methods together."""

    def __init__(self, config: Config, vocab: int, mesh: Mesh, device: Device) -> None:
        self.config, self.mesh, self.device = config, mesh, device
        self.dtype = DTYPES[config.precision.dtype]
        self.main_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.tp = TensorParallel(mesh.tp, config.parallel.sequence_parallel, self.dtype, device.torch_device)
        self.virtual = config.parallel.virtual_stages
        self.chunks = build_chunks(config, vocab, mesh, self.tp)
        self.buckets = self._build_buckets()
        clipping = CLIP_MODES[config.optim.clip_mode]
        by_tensor = clipping.per_tensor or config.optim.update_clip > 0
        sizes = {n: math.prod(s) for n, s in parameter_shapes(config.model, vocab).items()} if by_tensor else {}
        self.optimizer = ShardedAdamW(self.buckets, _adamw_settings(config.optim), sizes, mesh.world)
        self.clipping = clipping(config.optim, list(sizes), device.torch_device)
        self._step, self._loss_factor, self._loss_scale = 0, self._scalar(1.0), self._scalar(1.0)
        self._executors: dict[tuple[int, int, bool], Executor] = {}
        self.stopwatch = Stopwatch(device)  # of the pipeline's actions
        self.clock = BusyClock(device)

    def _build_buckets(self) -> Buckets:
        weights: dict[nn.Parameter, int] = {}
        for chunk in self.chunks:
            for weight in chunk.parameters():
                weights.setdefault(weight, 1)
        first, last = self.chunks[0], self.chunks[-1]
        if first.is_first and last.is_last and self.config.model.tied_embeddings:
            weights[last.head] = 2  # looked up by the first chunk, multiplied by the last
        shared = self.chunks[0].shared
        for weight in [] if shared is None else shared.parameters():
            weights[weight] = len(self.chunks)
        optim, parallel = self.config.optim, self.config.parallel

        def decays(piece: Piece) -> bool:
            return piece.kind != VECTOR and (piece.kind != EMBEDDING or optim.decay_embeddings)

        return Buckets(
            weights, weights, dp=self.mesh.dp, bucket_bytes=int(parallel.bucket_mb * 2**20),
            main_dtype=self.main_dtype, overlap=parallel.overlap, decays=decays,
        )  # fmt: skip

    def initialise(self) -> None:
        """Draw all weights, the same numbers in every layout, and forget all moments."""
        self.forget()
        draw = partial(Piece.draw, seed=self.config.train.seed, dtype=self.main_dtype, device=self.device.torch_device)
        self.optimizer.set_masters(lambda piece: draw(piece))

    def forget(self) -> None:
        """Begin anew, but for the weights: no moments, no updates made, nothing learnt for clipping."""
        self.optimizer.forget()
        self.clipping.load(None)

    def state_tensors(self) -> list[Tensor]:
        """Return every tensor that holds state of mine: a copy of them all is a state to go back to."""
        return [*self.optimizer.tensors(), self.clipping.state]

    def run(
        self, step: int, micro_batches: list[MicroBatch], lr: float, loss_scale: float = 1.0, stop: bool = False
    ) -> StepResult:
        """Train on one global batch, of which `micro_batches` are this replica's part; `stop` is my vote to end."""
        return self.update(self.gradients(step, micro_batches, loss_scale, stop), lr)

    def gradients(
        self, step: int, micro_batches: list[MicroBatch], loss_scale: float = 1.0, stop: bool = False
    ) -> Gradients:
        """Run forward and backward passes and reduce their gradients; weights stay as they are."""
        batches = [micro.to(self.device.torch_device) for micro in micro_batches]
        self._step, self._loss_factor, self._loss_scale = step, self._token_share(batches), self._scalar(loss_scale)
        for chunk in self.chunks:
            chunk.train()
        self.buckets.start(len(batches))
        losses = self._executor(batches, train=True).run(batches, self._loss_scale)
        FLIGHT.phase(phases.REDUCE)
        self.buckets.finish()
        FLIGHT.phase(phases.NORM)
        every = self.config.monitor.param_norm_interval
        weights = self.optimizer.weight_squares() if every and step % every == 0 else None
        loss, stops, weights, busy, squares_t = self._sum_over_world(losses, stop, self.optimizer.squares(), weights)
        norm, norms_t = squares_t.sum().sqrt() / loss_scale, squares_t.sqrt() / loss_scale
        return Gradients(step, loss, norm, norms_t, stops, busy, weights.sqrt(), loss_scale)

    def update(
        self, gradients: Gradients, lr: float, limits: Limits = NO_LIMITS, clip_factor: float = 1.0
    ) -> StepResult:
        """Update the weights with the gradients in the buckets, unless they are not finite or beyond `limits`, or the
        update is too large for the weights."""
        loss, norm, optim = gradients.loss, gradients.norm, self.config.optim
        keep = torch.isfinite(norm) & torch.isfinite(loss) & (loss <= limits.loss) & (norm <= limits.grad_norm)
        factor = self.clipping.factor(norm, gradients.norms_t, optim.clip * clip_factor)
        FLIGHT.phase(phases.OPTIMIZER)
        made = self.optimizer.step(
            lr, (factor / gradients.loss_scale).to(self.main_dtype), keep.to(self.main_dtype),
            beta2=second_beta(gradients.step, optim),
        )  # fmt: skip
        self.clipping.accept(made)
        FLIGHT.phase(phases.READ)
        made = made.to(norm.dtype)
        return StepResult(loss, norm, made, gradients.stops, gradients.busy_s, gradients.param_norm)

    def evaluate(self, micro_batches: list[MicroBatch]) -> Tensor:
        """Return the mean loss over the unmasked tokens of all replicas' `micro_batches`, without training."""
        batches = [micro.to(self.device.torch_device) for micro in micro_batches]
        self._loss_factor = self._token_share(batches)
        for chunk in self.chunks:
            chunk.eval()
        losses = self._executor(batches, train=False).run(batches)
        return self._sum_over_world(losses, False, torch.zeros(0, device=self.device.torch_device))[0]

    def _token_share(self, batches: list[MicroBatch]) -> Tensor:
        """Return 1 / (unmasked tokens of the global batch): the one place where the loss is normalised."""
        counts = [
            torch.tensor(micro.labels_bs.numel(), dtype=torch.float64, device=self.device.torch_device)
            if micro.loss_mask_bs is None
            else micro.loss_mask_bs.sum(dtype=torch.float64)
            for micro in batches
        ]
        total = torch.stack(counts).sum()
        all_reduce(total, self.mesh.dp)
        return 1.0 / total.clamp(min=1.0)  # a batch without any token to learn from has a loss of 0

    def _sum_over_world(
        self, losses: list[Tensor], stop: bool, squares_t: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Add up losses (held by the last stage, equal over tp), votes to stop, squares of weights and by tensor.

        All is float64. The fourth tensor [world] is the time that each rank was busy since the call before.
        """
        loss = torch.zeros((), dtype=torch.float64, device=self.device.torch_device)
        if self.mesh.is_last_stage and self.mesh.tp.is_first:
            loss = torch.stack(losses).sum(dtype=torch.float64)
        votes = torch.full_like(loss, float(stop))
        busy = torch.zeros(self.mesh.world.size, dtype=torch.float64, device=loss.device)
        busy[self.mesh.world.rank].fill_(self.clock.lap())  # a fill, not a copy from the host: nothing waits
        weights = torch.zeros_like(loss) if weights is None else weights
        sums = torch.cat([loss[None], votes[None], weights[None], busy, squares_t.double()])
        all_reduce(sums, self.mesh.world)
        squares_at = 3 + len(busy)
        return sums[0], sums[1], sums[2], sums[3:squares_at], sums[squares_at:]

    def _forward(self, chunk: Chunk, hidden_bsh: Tensor | None, micro: MicroBatch) -> Tensor:
        """Run one chunk; the last one returns its micro-batch's share of the global mean loss."""
        ctx = make_pass(micro, self._dropout_key() if chunk.training else None)
        with self.clock.work():
            out = chunk(hidden_bsh, micro.tokens_bs, ctx)
        if not chunk.is_last:
            return out
        return chunk.loss(out, micro.labels_bs, Share(micro.loss_mask_bs, self._loss_factor, self._loss_scale))

    def _scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float32, device=self.device.torch_device)

    def _dropout_key(self) -> Callable[[int, str], int]:
        seed, step = self.config.train.seed, self._step
        return lambda layer, site: make_key(seed, "dropout", step, layer, site)

    def _executor(self, batches: list[MicroBatch], train: bool) -> Executor:
        """Return the executor for this many micro-batches of this size; kept, since most steps are alike."""
        samples, sequence = batches[0].tokens_bs.shape
        shape = (samples, sequence // (self.tp.axis.size if self.tp.shards_sequence else 1), self.config.model.hidden)
        found = self._executors.get((len(batches), samples, train))
        if found is None:
            stages = self.mesh.pp.size
            schedule = (
                build(self.config.parallel.schedule, stages, len(batches), self.virtual)
                if train
                else forward_only(stages, len(batches), self.virtual)
            )
            activations, gradients = self.mesh.pipeline_groups
            found = Executor(
                stage=self.mesh.pp.rank, stages=stages, chunks=[partial(self._forward, chunk) for chunk in self.chunks],
                schedule=schedule, activation_group=activations, gradient_group=gradients,
                rank_of=self.mesh.pp.ranks.__getitem__, shape=shape, dtype=self.dtype, device=self.device.torch_device,
                stopwatch=self.stopwatch,
            )  # fmt: skip
            self._executors[(len(batches), samples, train)] = found
        return found


def _adamw_settings(optim: OptimConfig) -> AdamWSettings:
    return AdamWSettings(
        optim.beta1, optim.beta2, optim.eps, optim.weight_decay, corrects_bias=optim.beta2_schedule == "constant",
        update_clip=optim.update_clip, max_update_ratio=optim.max_update_ratio,
    )  # fmt: skip
