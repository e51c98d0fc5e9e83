"""A saved run as tools see it: its newest whole checkpoint, and what that says of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import MANIFEST
from engine.checkpoint.reader import Checkpoint, find_checkpoint, open_checkpoint
from engine.checkpoint.state import MASTER
from engine.config import Config, DataConfig, ModelConfig, ObjectiveConfig
from engine.errors import CheckpointError
from engine.models.transformer import parameter_shapes
from engine.validate import validate


@dataclass(frozen=True)
class SavedModel:
    """A verified checkpoint and what its meta says of the model.

    `context`: tokens the model was trained to see at once; `tokenizer_file`: None where the run has none;
    `objective`: what it was trained by.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    vocab: int
    context: int
    tokenizer_file: Path | None
    objective: ObjectiveConfig

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
        context, vocab = int(meta["config"]["data"]["seq_len"]), int(meta["vocab_size"])
        objective = ObjectiveConfig(**meta["config"].get("objective", {}))
        # A manifest from elsewhere must not make us ask for more memory than its files could fill.
        data = DataConfig(seq_len=1 if objective.name == "causal" else context, tokenizer="tokenizer.json")
        validate(Config(model=replace(config, vocab_size=vocab), data=data, objective=objective), None)
        if config.layers > len(checkpoint.names()):
            raise CheckpointError(f"{checkpoint.path} holds too few tensors for {config.layers} layers.")
        for name, shape in parameter_shapes(config, vocab).items():
            checkpoint.expect(f"{MASTER}/{name}", shape)
        if config.positions.startswith("learned"):
            context = min(context, config.max_positions)
        tokenizer = None
        if meta["tokenizer"] is not None:
            # only a plain name: a manifest from elsewhere must not point out of its run folder
            tokenizer = checkpoint.path.resolve().parent.parent / Path(meta["tokenizer"]).name
            tokenizer = tokenizer if tokenizer.is_file() else None
        return cls(checkpoint, config, vocab, context, tokenizer, objective)


def _find(path: Path) -> Checkpoint:
    if (path / MANIFEST).exists():
        return open_checkpoint(path)
    found = find_checkpoint(path / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    if found is None:
        raise CheckpointError(
            f"{path} is neither a checkpoint nor a run folder that holds one; train it first, or name another."
        )
    return found
