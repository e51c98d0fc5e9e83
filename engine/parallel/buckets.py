"""Flat parameters and main gradients in buckets, reduced over dp while the backward pass runs (ZeRO-1).

All parameters of a rank live in one flat tensor and their gradients accumulate in another one of fp32 (fp64
for fp64 runs), cut into buckets in backward order (arXiv 1910.02054; Megatron's distributed optimizer). A
bucket whose gradients are complete is reduce-scattered over dp at once: each replica receives the sum of its
1/dp of the bucket, updates that part, and the parts are gathered back.

Inside a bucket the elements are cut into *runs*: stretches of pieces with the same treatment (weight decay,
counted in norms, summed over some tp or embedding axis). Gradients that are only partial on each rank of such
an axis (norm weights under sequence parallelism, shared kv heads, tied embeddings on two stages) are summed
there first; forgetting that is the classic silent bug of tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from engine.mesh import Axis
from engine.parallel.collectives import Handle, all_gather, all_reduce, reduce_scatter
from engine.parallel.drift import bit_sum
from engine.parallel.sharding import Piece, pieces_of

ALIGN = 64  # elements; a shard starts on a cache line and on a vector


@dataclass(frozen=True)
class Placed:
    """A piece at elements [start, start + piece.numel) of its bucket."""

    piece: Piece
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.piece.numel


@dataclass(frozen=True)
class Run:
    """Elements [start, stop) of a bucket that are treated alike."""

    start: int
    stop: int
    decay: bool
    counted: bool
    reduce: Axis | None

    def within(self, start: int, stop: int) -> Run | None:
        """Return the part of this run inside [start, stop), in coordinates that begin at `start`."""
        low, high = max(self.start, start), min(self.stop, stop)
        if low >= high:
            return None
        return Run(low - start, high - start, self.decay, self.counted, self.reduce)


@dataclass
class Bucket:
    """Some parameters, their flat values `params` and gradients `grads` (both of one length, a multiple of dp)."""

    weights: list[nn.Parameter]
    placed: list[Placed]
    params: Tensor
    grads: Tensor
    dp: Axis
    late: bool  # must wait for the end of the pipeline schedule: its extra reduction crosses stages
    missing: int = 0  # gradient contributions still to come in this step
    handle: Handle | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def shard_range(self) -> tuple[int, int]:
        size = self.params.numel() // self.dp.size
        return self.dp.rank * size, (self.dp.rank + 1) * size

    def param_shard(self) -> Tensor:
        return self.params[slice(*self.shard_range)]

    def grad_shard(self) -> Tensor:
        """My dp shard of the gradient, whole after `Buckets.finish`."""
        return self.grads[slice(*self.shard_range)]

    def shard_runs(self) -> list[Run]:
        """The runs that my shard holds, in shard coordinates."""
        found = (run.within(*self.shard_range) for run in self.runs)
        return [run for run in found if run is not None]

    def shard_tensors(self) -> list[tuple[str, Run]]:
        """As `shard_runs`, but a run of its own for each piece, with the global name of its tensor."""
        found = []
        for item in self.placed:
            around = next(run for run in self.runs if run.start <= item.start < run.stop)
            run = replace(around, start=item.start, stop=item.stop).within(*self.shard_range)
            if run is not None:
                found.append((item.piece.name, run))
        return found

    def reduce(self) -> None:
        """Sum partial gradients over their own axes, then start the reduce-scatter over dp."""
        partial = [
            all_reduce(self.grads[run.start : run.stop], run.reduce, asynchronous=True)
            for run in self.runs
            if run.reduce is not None
        ]
        for handle in partial:
            handle.wait()
        self.handle = reduce_scatter(self.grad_shard(), self.grads, self.dp)


class Buckets:
    """All parameters of a rank in buckets. Re-points `weight.data` and gives each weight a `main_grad` view.

    `uses[weight]` is how many gradient contributions a weight receives per micro-batch (2 for a tied embedding
    whose two uses are on one stage). Between `start(micro_batches)` and `finish()` the backward passes of one
    step run; buckets are reduced in a fixed order, the same on every replica. `decays(piece)` says whether weight
    decay applies to a piece.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        uses: dict[nn.Parameter, int],
        *,
        dp: Axis,
        bucket_bytes: int,
        main_dtype: torch.dtype,
        overlap: bool,
        decays: Callable[[Piece], bool],
    ) -> None:
        self.dp, self.overlap, self.uses = dp, overlap, uses
        ordered = list(reversed(list(weights)))
        late = [weight for weight in ordered if _is_late(weight)]
        early = [weight for weight in ordered if not _is_late(weight)]
        limit = max(1, bucket_bytes // main_dtype.itemsize)
        groups = [(group, False) for group in _fill(early, limit)] + [(group, True) for group in _fill(late, limit)]
        plans = [_place(group, dp.size, decays) for group, _ in groups]
        total = sum(length for _, length in plans)
        sample = ordered[0]
        self.flat_params = torch.zeros(total, dtype=sample.dtype, device=sample.device)
        self.flat_grads = torch.zeros(total, dtype=main_dtype, device=sample.device)
        # CPUs multiply 16-bit weights as float32: one copy a step serves all micro-batches, forward and backward.
        is_widened = sample.is_cpu and sample.dtype in (torch.bfloat16, torch.float16)
        self.flat_widened = torch.zeros(total, device=sample.device) if is_widened else None
        self.buckets: list[Bucket] = []
        self._bucket_of: dict[nn.Parameter, Bucket] = {}
        begin = 0
        for (group, is_late), (placed, length) in zip(groups, plans, strict=True):
            span = slice(begin, begin + length)
            bucket = Bucket(group, placed, self.flat_params[span], self.flat_grads[span], dp, is_late)
            bucket.runs = _runs(placed, decays)
            self._adopt(bucket, None if self.flat_widened is None else self.flat_widened[span])
            self.buckets.append(bucket)
            begin += length
        self._next = 0

    def _adopt(self, bucket: Bucket, widened: Tensor | None) -> None:
        """Make the bucket's weights views of its flat tensors and listen for their gradients."""
        start = 0
        for weight in bucket.weights:
            span = slice(start, start + weight.numel())
            weight.data = bucket.params[span].view(weight.shape)
            weight.main_grad = bucket.grads[span].view(weight.shape)  # type: ignore[attr-defined]
            if widened is not None:
                weight.widened = widened[span].view(weight.shape)  # type: ignore[attr-defined]
            weight.grad_ready = lambda weight=weight: self._arrived(weight)  # type: ignore[attr-defined]
            weight.register_post_accumulate_grad_hook(_move_to_main_grad)
            self._bucket_of[weight] = bucket
            start += weight.numel()

    def start(self, micro_batches: int) -> None:
        """Zero the gradients and expect `micro_batches` backward passes."""
        self.flat_grads.zero_()
        self._next = 0
        for bucket in self.buckets:
            bucket.missing = micro_batches * sum(self.uses.get(weight, 1) for weight in bucket.weights)

    def _arrived(self, weight: nn.Parameter) -> None:
        bucket = self._bucket_of[weight]
        bucket.missing -= 1
        if self.overlap and bucket.missing == 0:
            self._launch(ready_only=True)

    def _launch(self, ready_only: bool) -> None:
        """Reduce buckets in order; with `ready_only` stop at the first that is incomplete or late."""
        while self._next < len(self.buckets):
            bucket = self.buckets[self._next]
            if ready_only and (bucket.missing > 0 or bucket.late):
                return
            bucket.reduce()
            self._next += 1

    def finish(self) -> None:
        """Reduce what is left and wait: afterwards each bucket's `grad_shard()` is the sum over all replicas."""
        self._launch(ready_only=False)
        for bucket in self.buckets:
            if bucket.handle is not None:
                bucket.handle.wait()
                bucket.handle = None

    def fingerprint(self) -> Tensor:
        """Return the sum of the bits of my gradient buffers per bucket and dp shard: int64 [buckets, dp].

        After `finish` my own shard holds the sum over all replicas; the shards of others, my contribution to them.
        """
        return torch.stack(
            [torch.stack([bit_sum(shard) for shard in bucket.grads.chunk(self.dp.size)]) for bucket in self.buckets]
        )

    def gather_params(self) -> None:
        """Give every replica the whole parameters after each has updated its shard."""
        handles = [all_gather(bucket.params, bucket.param_shard(), self.dp) for bucket in self.buckets]
        for handle in handles:
            handle.wait()
        self.refresh()

    def refresh(self) -> None:
        """Follow what was written into the parameters; `gather_params` does it itself."""
        if self.flat_widened is not None:
            self.flat_widened.copy_(self.flat_params)


def _is_late(weight: nn.Parameter) -> bool:
    """Say whether copies of a weight lie on several stages (a tied table, what all layers share)."""
    return any(piece.reduce is not None and piece.reduce.name in ("embedding", "pp") for piece in pieces_of(weight))


def _fill(weights: list[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    """Cut a list of weights into groups of at most `limit` elements (a larger weight has a group of its own).

    The cuts must not depend on my place in tp: groups of different make-up would reduce different things.
    """
    groups: list[list[nn.Parameter]] = []
    room = 0
    for weight in weights:
        size = sum(piece.room or piece.numel for piece in pieces_of(weight))
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(weight)
        room -= size
    return groups


def _place(group: list[nn.Parameter], dp: int, decays: Callable[[Piece], bool]) -> tuple[list[Placed], int]:
    """Order a bucket's weights so that equal treatment is adjacent; return the placed pieces and padded length.

    What counts differs between the ranks of tp, so it comes last: runs with a reduction, all of whose pieces count
    on the same rank, keep one order everywhere.
    """

    def treatment(piece: Piece) -> tuple[bool, str, bool]:
        return decays(piece), "" if piece.reduce is None else piece.reduce.name, piece.counted

    group.sort(key=lambda weight: [treatment(piece) for piece in pieces_of(weight)])
    placed: list[Placed] = []
    end = 0
    for weight in group:
        for piece in pieces_of(weight):
            placed.append(Placed(piece, end))
            end += piece.numel
    unit = dp * ALIGN
    return placed, -(-end // unit) * unit


def _runs(placed: list[Placed], decays: Callable[[Piece], bool]) -> list[Run]:
    """Merge neighbouring pieces with equal treatment."""
    runs: list[Run] = []
    for item in placed:
        piece = item.piece
        run = Run(item.start, item.stop, decays(piece), piece.counted, piece.reduce)
        if runs and (runs[-1].decay, runs[-1].counted, runs[-1].reduce) == (run.decay, run.counted, run.reduce):
            run = Run(runs.pop().start, run.stop, run.decay, run.counted, run.reduce)
        runs.append(run)
    return runs


def _move_to_main_grad(weight: Tensor) -> None:
    """Add what autograd left in `.grad` to the main gradient, for weights used outside of the engine's own ops.

    Those add to the main gradient themselves: what comes here has been rounded to the weight's dtype.
    """
    if weight.grad is not None:
        weight.main_grad.add_(weight.grad)  # type: ignore[attr-defined]
        weight.grad = None
        weight.grad_ready()  # type: ignore[attr-defined]
