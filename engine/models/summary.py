"""A model in few words, and where its parameters are."""

from __future__ import annotations

import math
from collections import Counter

from engine.config import ModelConfig
from engine.models.transformer import parameter_shapes

_PLACES = (  # the first part of a name that fits
    ("embedding", "embedding"), ("positions", "positions"), ("relative_bias", "positions"),
    ("query_positions", "positions"), ("head", "head"), ("norm", "norms"), ("distance", "attention"),
    ("attention", "attention"), ("mlp", "feed-forward"),
)  # fmt: skip


def family(config: ModelConfig) -> str:
    """Return what kind of model it is."""
    return "dense decoder"


def traits(config: ModelConfig) -> str:
    """Return a line with what tells the model from others."""
    tying = "tied" if config.tied_embeddings else "untied"
    parts = (_block(config), _positions(config), config.activation, _attention(config), _biases(config), tying)
    return ", ".join(part for part in parts if part)


def parameters_by_place(config: ModelConfig, vocab: int) -> dict[str, int]:
    """Return how many parameters embedding, positions, attention, feed-forward layers, norms and head have."""
    found: Counter[str] = Counter()
    for name, shape in parameter_shapes(config, vocab).items():
        parts = name.replace("_norm", ".norm").split(".")
        place = next(place for start, place in _PLACES for part in reversed(parts) if part.startswith(start))
        found[place] += math.prod(shape)
    return dict(found)


def _block(config: ModelConfig) -> str:
    extra = "".join(
        f" + {name}" for name, on in (("embedding norm", config.embedding_norm), ("qk norm", config.qk_norm)) if on
    )
    return f"{config.block} {config.norm}{extra}"


def _positions(config: ModelConfig) -> str:
    if config.positions != "rope":
        return config.positions + (" + query layer" if config.query_layer else "")
    part = "" if config.rope_fraction == 1 else f" {config.rope_fraction:.0%}"
    pairs = " interleaved" if config.rope_interleaved else ""
    return f"rope{part}{pairs}" + ("" if config.rope_scaling == 1 else f" scaled {config.rope_scaling:g}x")


def _attention(config: ModelConfig) -> str:
    kv_heads = config.kv_heads or config.heads
    kind = "MHA" if kv_heads == config.heads else "MQA" if kv_heads == 1 else f"GQA {config.heads}/{kv_heads}"
    window = "" if config.attention_window is None else f" window {config.attention_window}"
    every = "" if config.window_interval == 1 else f" every {config.window_interval} layers"
    return kind + window + every + (f" cap {config.attention_softcap:g}" if config.attention_softcap else "")


def _biases(config: ModelConfig) -> str:
    biases = (config.attention_bias, config.attention_out_bias, config.mlp_bias)
    if all(biases):
        return "biases"
    names = [name for name, on in zip(("qkv", "out", "mlp"), biases, strict=True) if on]
    return f"biases of {' and '.join(names)}" if names else ""
