"""LlamaForCausalLM: RMSNorm, rotary positions, SwiGLU, grouped kv heads."""

from __future__ import annotations

from typing import Any

from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.interchange.family import HEAD, Family, Field, Link

_PLAIN_ROPE = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}


def settle_rope(plain: dict[str, Any]) -> dict[str, Any]:
    """Fold `rope_parameters` (transformers 5) and `rope_scaling` (4) into rope_theta; only plain rope is ours."""
    plain = dict(plain)
    for key in ("rope_scaling", "rope_parameters"):
        rope = plain.pop(key, {})
        if not isinstance(rope, dict):
            raise ConfigError(f"config.json has {key}={rope}, which is no object.")
        rope = {name: value for name, value in rope.items() if value is not None}
        if "rope_theta" in rope:
            plain["rope_theta"] = rope.pop("rope_theta")
        changes = {name: value for name, value in rope.items() if value != _PLAIN_ROPE.get(name)}
        if changes:
            raise ConfigError(f"config.json has {key}={changes}, a change of the rotary positions we cannot represent.")
    return plain


def _limits(config: ModelConfig) -> list[str]:
    if config.hidden % config.heads:
        return [f"model.hidden={config.hidden} with model.heads={config.heads}, which does not divide it"]
    return []


_ATTENTION, _MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    traits={"norm": "rmsnorm", "positions": "rope"},
    fields=(
        Field("vocab_size", ("vocab_size",), int, 32000),
        Field("hidden_size", ("hidden",), int, 4096),
        Field("intermediate_size", ("ffn",), int, 11008),
        Field("num_hidden_layers", ("layers",), int, 32),
        Field("num_attention_heads", ("heads",), int, 32),
        Field("num_key_value_heads", ("kv_heads",), int),
        Field("head_dim", ("head_dim",), int),
        Field("hidden_act", ("activation",), str, "silu", {"silu": "swiglu", "swish": "swiglu"}),
        Field("max_position_embeddings", ("max_positions",), int, 2048),
        Field("rms_norm_eps", ("norm_eps",), float, 1e-6),
        Field("rope_theta", ("rope_theta",), float, 10000.0),
        Field("attention_bias", ("attention_bias", "attention_out_bias"), bool, False),
        Field("mlp_bias", ("mlp_bias",), bool, False),
        Field("tie_word_embeddings", ("tied_embeddings",), bool, False),
        Field("attention_dropout", ("attention_dropout",), float, 0.0),
        Field("initializer_range", ("init_std",), float, 0.02),
    ),
    links=(
        Link("embedding.weight", "model.embed_tokens.weight"),
        *(
            Link(f"layers.{{}}.attention.{ours}.{part}", f"{_ATTENTION}.{theirs}_proj.{part}")
            for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
            for part in ("weight", "bias")
        ),
        *(
            Link(f"layers.{{}}.mlp.{name}.{part}", f"{_MLP}.{name}_proj.{part}")
            for name in ("gate", "up", "down")
            for part in ("weight", "bias")
        ),
        Link("layers.{}.norm1.weight", "model.layers.{}.input_layernorm.weight"),
        Link("layers.{}.norm2.weight", "model.layers.{}.post_attention_layernorm.weight"),
        Link("final_norm.weight", "model.norm.weight"),
        Link("head.weight", HEAD),
    ),
    settle=settle_rope,
    limits=_limits,
    inert=frozenset({"pretraining_tp"}),  # sums the same products in slices
    buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
