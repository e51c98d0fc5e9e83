"""What a Hugging Face family is to us: how its config.json reads, and which of its tensors are which of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import ConfigError, did_you_mean

# Fields of any config.json that do not change what the network computes.
INERT = frozenset(
    {
        "_name_or_path", "_attn_implementation_autoset", "transformers_version", "torch_dtype", "dtype", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class", "task_specific_params",
        "n_ctx", "output_attentions", "output_hidden_states", "return_dict", "is_decoder", "is_encoder_decoder",
        "id2label", "label2id", "problem_type", "chunk_size_feed_forward", "auto_map",
        "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """Their tensor `theirs` is our tensors `ours` stacked along dim 0, then transposed if `transpose` (Conv1D)."""

    ours: tuple[str, ...]
    theirs: str
    transpose: bool = False

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Make their tensor out of ours."""
        whole = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        return whole.t().contiguous() if self.transpose else whole

    def cut(self, tensor: Tensor, rows: list[int]) -> list[Tensor]:
        """Make our tensors, of `rows` rows each, out of theirs."""
        whole = tensor.t() if self.transpose else tensor
        return [part.contiguous() for part in whole.split(rows)]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    `fits(config)` names the first trait the family cannot express, None when it can express all. `write` makes
    config.json for a vocabulary size, `read` turns one back. A field is either written by `write`, one of the
    `checked` ones whose value `read` insists on, or inert; any other stops an import.
    """

    architecture: str
    fits: Callable[[ModelConfig], str | None]
    write: Callable[[ModelConfig, int], dict[str, Any]]
    read: Callable[[dict[str, Any]], ModelConfig]
    links: Callable[[ModelConfig], list[Link]]
    checked: frozenset[str]


def require(found: dict[str, Any], **allowed: Any) -> None:
    """Stop with the name of the first field whose value is none of those we can represent.

    `allowed` maps a field to its only value or a tuple of values; an absent field is fine.
    """
    for name, values in allowed.items():
        values = values if isinstance(values, tuple) else (values,)
        if name in found and found[name] not in values:
            known = " or ".join(repr(value) for value in values)
            raise ConfigError(f"config.json: {name}={found[name]!r} cannot be represented here (only {known}).")


def find(families: dict[str, Family], architecture: str) -> Family:
    """Return the family of an architecture's name; raise ConfigError when it is unknown."""
    if architecture not in families:
        raise ConfigError(f"config.json: architecture {architecture} is unknown.{did_you_mean(architecture, families)}")
    return families[architecture]


def read_config(family: Family, found: dict[str, Any]) -> ModelConfig:
    """Return the model of a config.json; raise ConfigError at a field that would have to be ignored."""
    try:
        config = family.read(found)
    except KeyError as missing:
        raise ConfigError(f"config.json: the field {missing} is missing for {family.architecture}.") from None
    known = set(family.write(config, 0)) | family.checked | INERT
    foreign = sorted(set(found) - known)
    if foreign:
        raise ConfigError(f"config.json: {foreign[0]}={found[foreign[0]]!r} has no counterpart here.")
    return config
