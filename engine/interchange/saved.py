"""A saved run as tools see it: which model its newest whole checkpoint holds, and its weights in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.reader import Checkpoint, find_checkpoint, open_checkpoint
from engine.checkpoint.state import read_piece
from engine.config import ModelConfig
from engine.device import DTYPES
from engine.errors import CheckpointError
from engine.mesh import Axis
from engine.models.transformer import Chunk
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import Piece, pieces_of


@dataclass(frozen=True)
class SavedModel:
    """A verified checkpoint and what its meta says of the model.

    `context`: tokens the model was trained to see at once; `dtype`: the precision it was trained in;
    `tokenizer_file`: None where the run has none.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    vocab: int
    context: int
    dtype: torch.dtype
    tokenizer_file: Path | None

    @classmethod
    def open(cls, path: Path) -> SavedModel:
        """Open a run folder (its newest whole checkpoint) or one checkpoint; CheckpointError when there is none."""
        checkpoint = _find(path)
        try:
            return cls._from_meta(checkpoint, checkpoint.meta)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{checkpoint.path} does not say what model it holds: {error!r}.") from None

    @classmethod
    def _from_meta(cls, checkpoint: Checkpoint, meta: dict[str, Any]) -> SavedModel:
        config = ModelConfig(**meta["config"]["model"])
        context = int(meta["config"]["data"]["seq_len"])
        if config.positions == "learned":
            context = min(context, config.max_positions)
        tokenizer = None
        if meta["tokenizer"] is not None:
            # only a plain name: a manifest from elsewhere must not point out of its run folder
            tokenizer = checkpoint.path.resolve().parent.parent / Path(meta["tokenizer"]).name
            tokenizer = tokenizer if tokenizer.is_file() else None
        dtype = DTYPES[meta["config"]["precision"]["dtype"]]
        return cls(checkpoint, config, int(meta["vocab_size"]), context, dtype, tokenizer)

    def load(self, dtype: torch.dtype, device: torch.device) -> Chunk:
        """Return the whole model in evaluation mode; CheckpointError when the tensors are those of another one."""
        return whole_model(
            self.config, self.vocab, dtype, device, lambda piece: read_piece(self.checkpoint, piece, dtype, device)
        ).eval()


def whole_model(
    config: ModelConfig, vocab: int, dtype: torch.dtype, device: torch.device, values: Callable[[Piece], Tensor]
) -> Chunk:
    """Build the whole model in this process, without a process group, from `values(piece)` of every piece."""
    chunk = _unfilled(config, vocab, dtype, device)
    with torch.no_grad():
        for weight in chunk.parameters():
            pieces = pieces_of(weight)
            for rows, piece in zip(weight.split([piece.shape[0] for piece in pieces]), pieces, strict=True):
                rows.copy_(values(piece))
    return chunk


def tensor_shapes(config: ModelConfig, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the model by its global name, in model order."""
    chunk = _unfilled(config, vocab, torch.float32, torch.device("meta"))
    return {piece.name: piece.global_shape for weight in chunk.parameters() for piece in pieces_of(weight)}


def _unfilled(config: ModelConfig, vocab: int, dtype: torch.dtype, device: torch.device) -> Chunk:
    alone = Axis("tp", 1, 0, None, (0,))
    tp = TensorParallel(alone, False, dtype, device)
    return Chunk(config, vocab, (0, config.layers), tp, kv_axis=alone, embedding_axis=alone)


def _find(path: Path) -> Checkpoint:
    if (path / MANIFEST).exists():
        return open_checkpoint(path)
    found = find_checkpoint(path / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    if found is None:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder that holds one.")
    return found
