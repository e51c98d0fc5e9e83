"""The families we know, and the choice among them: `to_hf` and `from_hf` between ModelConfig and config.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.config import ModelConfig
from engine.errors import ConfigError, did_you_mean
from engine.interchange.family import Family, config_from, config_to, mismatches
from engine.interchange.gpt2 import GPT2
from engine.interchange.llama import LLAMA
from engine.interchange.qwen3 import QWEN3

FAMILIES = (LLAMA, QWEN3, GPT2)


def family_of(plain: dict[str, Any]) -> Family:
    """Return the family that a config.json belongs to; ConfigError for an architecture we do not know."""
    names = plain.get("architectures")
    known = {family.architecture: family for family in FAMILIES}
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(f"config.json must name one architecture, e.g. architectures=[{FAMILIES[0].architecture}].")
    if names[0] not in known:
        raise ConfigError(f"architecture {names[0]} is unknown.{did_you_mean(names[0], known)}")
    return known[names[0]]


def from_hf(plain: dict[str, Any], name: str = "imported") -> ModelConfig:
    """Return the model, called `name`, that a config.json describes; ConfigError names what we cannot represent."""
    return config_from(family_of(plain), plain, name)


def family_for(config: ModelConfig) -> Family:
    """Return the family that can express `config`; ConfigError names what keeps the nearest one from it."""
    faults = {family.architecture: mismatches(family, config) for family in FAMILIES}
    nearest = min(FAMILIES, key=lambda family: len(faults[family.architecture]))
    if faults[nearest.architecture]:
        raise ConfigError(
            f"no Hugging Face architecture has this model; nearest is {nearest.architecture}, which cannot express "
            f"{', '.join(faults[nearest.architecture])}."
        )
    return nearest


def to_hf(config: ModelConfig, vocab: int) -> dict[str, Any]:
    """Return the config.json of a model with `vocab` rows of embeddings; ConfigError when no family has it."""
    config = replace(config, vocab_size=vocab)
    return config_to(family_for(config), config)
