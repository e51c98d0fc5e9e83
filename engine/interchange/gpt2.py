"""GPT2LMHeadModel: LayerNorm, learned positions, GELU (tanh), biases everywhere; weights are stored transposed."""

from __future__ import annotations

from typing import Any

from engine.config import ModelConfig
from engine.interchange.family import Family, Link, require


def fits(config: ModelConfig) -> str | None:
    """GPT-2 has one fixed set of traits and plain multi-head attention."""
    wanted = {
        "norm": "layernorm", "positions": "learned", "activation": "gelu_tanh", "attention_bias": True,
        "attention_out_bias": True, "mlp_bias": True,
    }  # fmt: skip
    for trait, value in wanted.items():
        if getattr(config, trait) != value:
            return trait
    if (config.kv_heads or config.heads) != config.heads:
        return "kv_heads"
    return "head_dim" if (config.head_dim or config.hidden // config.heads) * config.heads != config.hidden else None


def write(config: ModelConfig, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": config.max_positions,
        "n_embd": config.hidden,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ffn,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.hidden_dropout,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": "float32",
    }


def read(found: dict[str, Any]) -> ModelConfig:
    require(
        found, activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False, add_cross_attention=False,
    )  # fmt: skip
    hidden = found["n_embd"]
    return ModelConfig(
        name="gpt2",
        layers=found["n_layer"],
        hidden=hidden,
        heads=found["n_head"],
        ffn=found.get("n_inner") or 4 * hidden,
        vocab_size=found["vocab_size"],
        norm="layernorm",
        norm_eps=found.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        max_positions=found["n_positions"],
        activation="gelu_tanh",
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_embeddings=found.get("tie_word_embeddings", True),
        hidden_dropout=found.get("resid_pdrop", 0.1),
        embedding_dropout=found.get("embd_pdrop", 0.1),
        attention_dropout=found.get("attn_pdrop", 0.1),
        init_std=found.get("initializer_range", 0.02),
    )


def links(config: ModelConfig) -> list[Link]:
    made = [
        Link(("embedding.weight",), "transformer.wte.weight"),
        Link(("positions.weight",), "transformer.wpe.weight"),
        *_pair(("final_norm",), "transformer.ln_f"),
    ]
    if not config.tied_embeddings:
        made.append(Link(("head.weight",), "lm_head.weight"))
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}", f"transformer.h.{layer}"
        made += _pair((f"{ours}.norm1",), f"{theirs}.ln_1")
        made += _pair(tuple(f"{ours}.attention.{part}" for part in "qkv"), f"{theirs}.attn.c_attn", transpose=True)
        made += _pair((f"{ours}.attention.out",), f"{theirs}.attn.c_proj", transpose=True)
        made += _pair((f"{ours}.norm2",), f"{theirs}.ln_2")
        made += _pair((f"{ours}.mlp.up",), f"{theirs}.mlp.c_fc", transpose=True)
        made += _pair((f"{ours}.mlp.down",), f"{theirs}.mlp.c_proj", transpose=True)
    return made


def _pair(ours: tuple[str, ...], theirs: str, transpose: bool = False) -> list[Link]:
    """A weight and its bias; only the weight is stored transposed."""
    weight = Link(tuple(f"{name}.weight" for name in ours), f"{theirs}.weight", transpose)
    return [weight, Link(tuple(f"{name}.bias" for name in ours), f"{theirs}.bias")]


CHECKED = frozenset(
    {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"}
)
GPT2 = Family("GPT2LMHeadModel", fits, write, read, links, CHECKED)
