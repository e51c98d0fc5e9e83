"""LlamaForCausalLM: RMSNorm, half-split RoPE, SwiGLU, grouped kv heads."""

from __future__ import annotations

from typing import Any

from engine.config import ModelConfig
from engine.interchange.family import Family, Link, require

_BLOCK = {
    "norm1": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def fits(config: ModelConfig) -> str | None:
    """Llama has one switch for all attention biases. Dropout shapes training only: what it lacks of it is left out."""
    wanted = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu"}
    for trait, value in wanted.items():
        if getattr(config, trait) != value:
            return trait
    return "attention_out_bias" if config.attention_bias != config.attention_out_bias else None


def write(config: ModelConfig, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "head_dim": config.head_dim or config.hidden // config.heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": config.attention_bias,
        "attention_dropout": config.attention_dropout,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": "float32",
    }


def read(found: dict[str, Any]) -> ModelConfig:
    require(found, hidden_act="silu", rope_scaling=(None,), pretraining_tp=1)
    rope = found.get("rope_parameters") or {}
    require(rope, rope_type="default")
    heads = found["num_attention_heads"]
    bias = found.get("attention_bias", False)
    return ModelConfig(
        name="llama",
        layers=found["num_hidden_layers"],
        hidden=found["hidden_size"],
        heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads,
        head_dim=found.get("head_dim"),
        ffn=found["intermediate_size"],
        vocab_size=found["vocab_size"],
        norm="rmsnorm",
        norm_eps=found.get("rms_norm_eps", 1e-6),
        positions="rope",
        rope_theta=float(found.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        max_positions=found.get("max_position_embeddings", 2048),
        activation="swiglu",
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=found.get("mlp_bias", False),
        tied_embeddings=found.get("tie_word_embeddings", False),
        attention_dropout=found.get("attention_dropout", 0.0),
        init_std=found.get("initializer_range", 0.02),
    )


def links(config: ModelConfig) -> list[Link]:
    made = [
        Link(("embedding.weight",), "model.embed_tokens.weight"),
        Link(("final_norm.weight",), "model.norm.weight"),
    ]
    if not config.tied_embeddings:
        made.append(Link(("head.weight",), "lm_head.weight"))
    for layer in range(config.layers):
        for ours, theirs in _BLOCK.items():
            parts = ["weight"]
            if (ours.startswith("attention") and config.attention_bias) or (ours.startswith("mlp") and config.mlp_bias):
                parts.append("bias")
            made += [Link((f"layers.{layer}.{ours}.{p}",), f"model.layers.{layer}.{theirs}.{p}") for p in parts]
    return made


CHECKED = frozenset({"rope_scaling", "rope_parameters", "pretraining_tp"})
LLAMA = Family("LlamaForCausalLM", fits, write, read, links, CHECKED)
