"""What may change between a checkpoint and the run that goes on from it.

- What the weights are made for never may: the checkpoint is of another model.
- What the samples seen so far depend on may not, unless it is accepted by name: the position in the data, and what was
  passed over of it, would no longer mean anything, and neither would the run be a function of its configuration.
- All else may, and is told: the rate, the length and the batch of what is to come, precision, and the layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine.checkpoint.reader import Checkpoint
from engine.config import Config
from engine.errors import CheckpointError

FIXED = (
    "model.layers", "model.hidden", "model.heads", "model.kv_heads", "model.head_dim", "model.ffn", "model.norm",
    "model.positions", "model.activation", "model.attention_bias", "model.attention_out_bias", "model.mlp_bias",
    "model.tied_embeddings", "model.rope_theta", "model.norm_eps", "model.qk_norm", "model.embedding_norm",
    "model.vocab_size", "model.block", "model.final_norm", "model.rope_fraction", "model.rope_interleaved",
    "model.rope_scaling", "model.rope_scaling_low", "model.rope_scaling_high", "model.rope_scaling_context",
    "model.relative_buckets", "model.relative_distance", "model.query_layer", "model.attention_window",
    "model.window_interval", "model.attention_softcap", "model.attention_scale",
    "model.head_bias", "model.embedding_scale", "model.logit_scale",
)  # fmt: skip
ACCEPTABLE = (
    "train.seed", "data.seq_len", "data.split", "objective.name", "objective.noise", "objective.span",
    "objective.denoisers", "data.paths",
)  # fmt: skip
_UNTOLD = {  # no more than where files lie and what is shown; or told otherwise
    "train.log_interval", "model.name", "data.cache_dir", "data.workers", "data.prefetch", "data.format",
    "data.tokenizer", *FIXED, *ACCEPTABLE,
}  # fmt: skip
_UNTOLD_SECTIONS = ("run.", "monitor.", "checkpoint.", "cluster.")


def check_model(checkpoint: Checkpoint, config: Config, vocab: int) -> None:
    """Raise CheckpointError for the first trait that differs from the model the checkpoint holds."""
    saved, wanted = _saved(checkpoint), _wanted(config, vocab)
    for key in FIXED:
        if key in saved and saved[key] != wanted[key]:
            raise CheckpointError(
                f"{checkpoint.path} holds another model: {key} is {saved[key]} there and {wanted[key]} here. "
                f"Write {key}={saved[key]}, or another run.name to start afresh."
            )


def check_run(checkpoint: Checkpoint, config: Config, contents: Sequence[Any]) -> list[str]:
    """Raise CheckpointError for what may not change in a run that goes on; return a line that tells what does.

    `contents` says which corpora are trained on, as the checkpoint's meta does under "data".
    """
    saved, wanted = _saved(checkpoint), _wanted(config, None)
    _check_progress(checkpoint)
    refused = [key for key in ACCEPTABLE[:-1] if key in saved and saved[key] != wanted[key]]
    was = {key: _value(saved[key]) for key in refused}
    now = {key: _value(wanted[key]) for key in refused}
    if checkpoint.meta.get("data", contents) != contents:
        refused.append("data.paths")
        was["data.paths"], now["data.paths"] = "other texts, or shares of them", "these"
    wrong = [key for key in refused if key not in config.checkpoint.accept_changes]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} saw other samples: {', '.join(f'{key} was {was[key]}, is {now[key]}' for key in wrong)}"
            f". Put {'it' if len(wrong) == 1 else 'them'} back, or write another run.name to start afresh, or "
            f"checkpoint.accept_changes=[{','.join(wrong)}] to go on from its place in the data all the same."
        )
    changed = [key for key in wanted if key in saved and saved[key] != wanted[key]]
    told = [key for key in changed if key not in _UNTOLD and not key.startswith(_UNTOLD_SECTIONS)]
    lines = [f"{key} {was[key]} -> {now[key]}" for key in refused]
    lines += [f"{key} {_value(saved[key])} -> {_value(wanted[key])}" for key in told]
    return [f"changed since step {checkpoint.step}: {', '.join(lines)}"] if lines else []


def _check_progress(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose meta, which comes from its writer as it is, cannot be counted on from."""
    meta = checkpoint.meta
    scaler = meta.get("loss_scaler")
    numbers: list[Any] = [meta.get("consumed_samples"), meta.get("optimizer_steps")]
    numbers += [scaler.get(key) for key in ("scale", "clean_steps")] if isinstance(scaler, dict) else [None]
    if type(numbers[0]) is not int or not all(type(x) in (int, float) and 0 <= x < math.inf for x in numbers):
        raise CheckpointError(f"{checkpoint.path} does not say how far its run was: go on from another checkpoint.")


def _saved(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint says of its run by dotted keys; CheckpointError where it does not."""
    plain = checkpoint.meta.get("config")
    try:
        settings = dict(_flat(plain))
        return _resolved(settings, checkpoint.meta.get("vocab_size"))
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{checkpoint.path} does not say what run it is of: {error!r}.") from None


def _wanted(config: Config, vocab: int | None) -> dict[str, Any]:
    return _resolved(dict(_flat(json.loads(json.dumps(asdict(config))))), vocab)


def _flat(plain: Any) -> Iterator[tuple[str, Any]]:
    for section, fields in plain.items():
        if isinstance(fields, dict):
            for key, value in fields.items():
                yield f"{section}.{key}", value
        else:
            yield section, fields


def _resolved(settings: Mapping[str, Any], vocab: Any) -> dict[str, Any]:
    """Fill in what null stands for."""
    return {
        **settings,
        "model.kv_heads": settings["model.kv_heads"] or settings["model.heads"],
        "model.head_dim": settings["model.head_dim"] or settings["model.hidden"] // settings["model.heads"],
        "model.vocab_size": vocab,
    }


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
