"""Forward passes without training on any layout, whose results every rank gets: losses token by token, and logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config import Config
from engine.data.batch import MicroBatch
from engine.data.loader import Collator
from engine.data.samples import Sample
from engine.device import DTYPES
from engine.flight import phases
from engine.flight.recorder import FLIGHT
from engine.mesh import Mesh
from engine.models.transformer import Chunk, make_pass
from engine.objectives.causal import Causal
from engine.parallel.collectives import all_reduce
from engine.parallel.head_loss import token_logits, token_losses
from engine.parallel.linear import TensorParallel
from engine.parallel.pipeline.executor import Executor
from engine.parallel.pipeline.schedule import forward_only
from engine.parallel.pipeline.stopwatch import Stopwatch
from engine.parallel.sharding import pieces_of

_MICROS_PER_STAGE = 4  # micro-batches of a round: more wait less at the ends of the pipeline, and hold more
_SHORTEST = 16

# last(chunk, hidden states, micro-batch) -> what is kept of the micro-batch
Last = Callable[[Chunk, Tensor, MicroBatch], Tensor]


class TokenScores(NamedTuple):
    """Of each predicted token of a window, [n - 1]: its loss in nats, float64, and whether it was the likeliest."""

    losses: NDArray[np.float64]
    is_top: NDArray[np.bool_]


class Forward:
    """Runs windows of tokens through this rank's `chunks`. All ranks call its methods together, with equal windows.

    A window sees nothing of the others: which replica, round or micro-batch it falls into does not matter.
    """

    def __init__(self, config: Config, chunks: list[Chunk], tp: TensorParallel, mesh: Mesh) -> None:
        self.chunks, self.tp, self.mesh, self.device = chunks, tp, mesh, mesh.device
        self.context, self.micro_batch, self.hidden = config.data.seq_len, config.train.micro_batch, config.model.hidden
        self.virtual, self.dtype = config.parallel.virtual_stages, DTYPES[config.precision.dtype]
        data = config.data
        self._collate = Collator(
            Causal(data.seq_len, document_mask=data.document_mask, position_reset=data.position_reset)
        )
        self._executors: dict[tuple[int, int], Executor] = {}
        self._last: Last = _losses
        self.round_size = _MICROS_PER_STAGE * mesh.pp.size * self._windows_a_time

    @property
    def _windows_a_time(self) -> int:
        return self.micro_batch * self.mesh.dp.size

    def score(self, windows: Sequence[Sample]) -> list[TokenScores]:
        """Return how each token but the first of each window was predicted; windows have 2 to context + 1 tokens."""
        found = []
        for round_ in self._rounds(windows):
            length = self._length(max(len(sample.window) for sample in round_) - 1)
            kept = self._run(round_, length, _losses, (length, 2), torch.float64).cpu().numpy()
            for sample, scores in zip(round_, kept, strict=False):
                part = scores[: len(sample.window) - 1]
                found.append(TokenScores(part[:, 0], part[:, 1] > 0.5))
        return found

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logits [vocabulary] of what follows each prompt of 1 to context tokens, on the CPU."""
        found: list[Tensor] = []
        for round_ in self._rounds([_sample([*prompt, 0]) for prompt in prompts]):
            length = self._length(max(len(sample.window) for sample in round_) - 1)
            places_n = torch.tensor([len(sample.window) - 2 for sample in round_], device=self.device.torch_device)
            last = partial(_logits, places_n=places_n)
            wide = torch.promote_types(self.dtype, torch.float32)
            found += self._run(round_, length, last, (self._vocab(),), wide).cpu()[: len(round_)]
        return found

    def _rounds(self, windows: Sequence[Sample]) -> list[Sequence[Sample]]:
        return [windows[first : first + self.round_size] for first in range(0, len(windows), self.round_size)]

    def _length(self, longest: int) -> int:
        """Return the length that windows are filled up to: few different ones, which sequence parallelism can share."""
        unit = self.tp.axis.size if self.tp.shards_sequence else 1
        rounded = -(-max(_SHORTEST, 1 << (longest - 1).bit_length()) // unit) * unit
        return min(rounded, self.context)

    def _vocab(self) -> int:
        """Return the rows of the whole head; every stage has to know."""
        rows = torch.zeros((), dtype=torch.int64, device=self.device.torch_device)
        if self.mesh.is_last_stage:
            (piece,) = pieces_of(self.chunks[-1].head)
            rows.fill_(piece.global_shape[0])
        all_reduce(rows, self.mesh.pp)
        return int(rows.item())

    def _run(
        self, windows: Sequence[Sample], length: int, last: Last, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """Run one round; return what `last` keeps of each window, [windows and fill-ups, *shape], on every rank."""
        FLIGHT.phase(phases.EVAL)
        micros = -(-len(windows) // self._windows_a_time)
        filled = [_filled(sample, length) for sample in windows]
        filled += [_sample([0] * (length + 1))] * (micros * self._windows_a_time - len(windows))
        places = [
            range(first, first + self.micro_batch)
            for first in range(self.mesh.dp.rank * self.micro_batch, len(filled), self._windows_a_time)
        ]
        batches = [self._collate([filled[n] for n in place], list(place)) for place in places]
        for chunk in self.chunks:
            chunk.eval()
        self._last = last
        kept = self._executor(micros, length).run([batch.to(self.device.torch_device) for batch in batches])
        whole = torch.zeros((len(filled), *shape), dtype=dtype, device=self.device.torch_device)
        for place, result in zip(places, kept, strict=False):  # there are results on the last stage
            self._place(whole[place.start : place.stop], result)
        all_reduce(whole, self.mesh.world)
        return whole

    def _place(self, whole: Tensor, result: Tensor) -> None:
        """Put what this rank of tp contributes: its columns of logits, or on the first one what all of them have."""
        if whole.ndim == 2:
            (piece,) = pieces_of(self.chunks[-1].head)
            whole[:, piece.offsets[0] : piece.offsets[0] + piece.shape[0]] = result
        elif self.mesh.tp.is_first:
            whole.copy_(result)

    def _executor(self, micros: int, length: int) -> Executor:
        """Return the executor for this many micro-batches of this length."""
        found = self._executors.get((micros, length))
        if found is None:
            local = length // (self.tp.axis.size if self.tp.shards_sequence else 1)
            activations, gradients = self.mesh.pipeline_groups
            found = self._executors[micros, length] = Executor(
                stage=self.mesh.pp.rank, stages=self.mesh.pp.size,
                chunks=[partial(self._forward, chunk) for chunk in self.chunks],
                schedule=forward_only(self.mesh.pp.size, micros, self.virtual), activation_group=activations,
                gradient_group=gradients, rank_of=self.mesh.pp.ranks.__getitem__,
                shape=(self.micro_batch, local, self.hidden), dtype=self.dtype, device=self.device.torch_device,
                stopwatch=Stopwatch(self.device),
            )  # fmt: skip
        return found

    def _forward(self, chunk: Chunk, hidden_bsh: Tensor | None, micro: MicroBatch) -> Tensor:
        out = chunk(hidden_bsh, micro.tokens_bs, make_pass(micro, None))
        return self._last(chunk, out, micro) if chunk.is_last else out


def _losses(chunk: Chunk, x_bsh: Tensor, micro: MicroBatch) -> Tensor:
    losses_bs, is_top_bs = token_losses(
        x_bsh, chunk.head, micro.labels_bs, chunk.tp, bias_v=chunk.head_bias, block_mb=chunk.head_block_mb
    )
    return torch.stack([losses_bs.double(), is_top_bs.double()], dim=-1)


def _logits(chunk: Chunk, x_bsh: Tensor, micro: MicroBatch, *, places_n: Tensor) -> Tensor:
    slots_b = micro.slots_b.clamp(max=len(places_n) - 1)  # fill-ups stand behind
    return token_logits(x_bsh, chunk.head, places_n[slots_b], chunk.tp, bias_v=chunk.head_bias)


def _sample(tokens: Sequence[int]) -> Sample:
    return Sample(np.asarray(tokens, np.int64), np.zeros(0, np.int64))


def _filled(sample: Sample, length: int) -> Sample:
    """Return a window of length + 1 tokens; attention is causal, so that nothing sees what is filled up."""
    return Sample(np.pad(sample.window, (0, length + 1 - len(sample.window))), sample.document_starts)
