"""What a Hugging Face family is to us: how its config.json reads, and which of its tensors are which of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import ConfigError, did_you_mean


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
    config.json for a vocabulary size, `read` turns one back and stops at any field it would have to ignore.
    """

    architecture: str
    fits: Callable[[ModelConfig], str | None]
    write: Callable[[ModelConfig, int], dict[str, Any]]
    read: Callable[[dict[str, Any]], ModelConfig]
    links: Callable[[ModelConfig], list[Link]]


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
