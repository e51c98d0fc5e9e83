"""The training state as boxes of layout-free tensors: what a checkpoint saves and what it restores.

Saved are the fp32 masters and both moments, each element once over all ranks; parameters are the masters
rounded. A rank's share of a bucket cuts its last pieces anywhere, so a share is saved as the few boxes that a
flat range of a box makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from engine.checkpoint.boxes import Box, flat_range_boxes
from engine.checkpoint.entry import Entry
from engine.checkpoint.reader import Checkpoint
from engine.optim.adamw import Shard, ShardedAdamW
from engine.parallel.sharding import Piece, pieces_of

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")


def entries(optimizer: ShardedAdamW) -> Iterator[Entry]:
    """Yield this rank's part of the state, without the copies that another rank saves; neighbours in memory in turn."""
    for state in (MASTER, *MOMENTS):
        for shard, piece, part, flat in _parts(optimizer):
            if piece.counted:
                tensor = getattr(shard, state)[flat : flat + part.numel].view(part.shape)
                yield Entry(f"{state}/{piece.name}", piece.global_shape, part.offsets, tensor)


def restore(optimizer: ShardedAdamW, checkpoint: Checkpoint, *, moments: bool) -> None:
    """Load the weights, and the moments too unless a new run only starts from them, whatever layout wrote them."""

    def read(piece: Piece) -> Tensor:
        return read_piece(checkpoint, piece, optimizer.main_dtype, optimizer.step_count.device)

    optimizer.set_masters(read)
    if moments:
        for shard, piece, part, flat in _parts(optimizer):
            for state in MOMENTS:
                tensor = getattr(shard, state)[flat : flat + part.numel].view(part.shape)
                checkpoint.read(f"{state}/{piece.name}", part.offsets, tensor)
    optimizer.publish()


def load_parameters(checkpoint: Checkpoint, weights: Iterable[Tensor]) -> None:
    """Fill parameters with their parts of a checkpoint of any layout; CheckpointError when another model wrote it."""
    with torch.no_grad():
        for weight in weights:
            pieces = pieces_of(weight)
            for rows, piece in zip(weight.split([piece.shape[0] for piece in pieces]), pieces, strict=True):
                rows.copy_(read_piece(checkpoint, piece, weight.dtype, weight.device))


def read_piece(checkpoint: Checkpoint, piece: Piece, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a piece's weights from a checkpoint of any layout; CheckpointError when another model wrote it."""
    values = torch.empty(piece.shape, dtype=dtype, device=device)
    name = f"{MASTER}/{piece.name}"
    checkpoint.expect(name, piece.global_shape)
    checkpoint.read(name, piece.offsets, values)
    return values


def _parts(optimizer: ShardedAdamW) -> Iterator[tuple[Shard, Piece, Box, int]]:
    """Yield (shard, piece, box of the global tensor, its first element in the shard) for all I own over dp."""
    for shard in optimizer.shards:
        low, high = shard.bucket.shard_range
        for item in shard.bucket.placed:
            start, stop = max(low, item.start), min(high, item.stop)
            if start >= stop:
                continue
            whole = Box(item.piece.offsets, item.piece.shape)
            for part in flat_range_boxes(whole, start - item.start, stop - item.start):
                yield shard, item.piece, part.box, item.start + part.flat_start - low
