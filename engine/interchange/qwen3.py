"""Qwen3ForCausalLM: a Llama whose queries and keys are normed head by head (arXiv 2505.09388)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.errors import ConfigError
from engine.interchange.family import Family, Link
from engine.interchange.llama import LLAMA, settle_rope

_DEFAULTS = {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_STATED = ("num_key_value_heads", "head_dim")  # absent is not what null is


def _settle(plain: dict[str, Any]) -> dict[str, Any]:
    plain = settle_rope(plain)
    for key in _STATED:
        if key not in plain:
            raise ConfigError(f"config.json of Qwen3ForCausalLM has no {key}; write its value there.")
    kinds = plain.pop("layer_types", [])
    if any(kind != "full_attention" for kind in kinds):
        raise ConfigError(f"config.json has layer_types={kinds}; we can represent only full_attention.")
    return plain


QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    traits={**LLAMA.traits, "qk_norm": True},
    fields=tuple(
        replace(field, default=_DEFAULTS.get(field.theirs, field.default))
        for field in LLAMA.fields
        if field.theirs != "mlp_bias"
    ),
    links=(
        *LLAMA.links,
        *(
            Link(f"layers.{{}}.attention.{part}_norm.weight", f"model.layers.{{}}.self_attn.{part}_norm.weight")
            for part in "qk"
        ),
    ),
    constants={"use_sliding_window": False},
    settle=_settle,
    inert=frozenset({"sliding_window", "max_window_layers"}),  # of use_sliding_window
    buffers=LLAMA.buffers,
)
