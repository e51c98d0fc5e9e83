"""GPT2LMHeadModel: LayerNorm, learned positions, GELU, biases everywhere.

Its matrices are `Conv1D`s, stored [in, out]; q, k and v are thirds of one matrix.
"""

from __future__ import annotations

from typing import Any

from engine.interchange.family import HEAD, Family, Field, Link


def _settle(plain: dict[str, Any]) -> dict[str, Any]:
    """Fill in the width of the feed-forward layer, four times the model's unless it is said."""
    width = plain.get("n_embd", 768)
    return {"n_inner": 4 * width if isinstance(width, int) else width, **plain}


_BLOCK = "transformer.h.{}"

GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    traits={
        "norm": "layernorm", "positions": "learned", "kv_heads": None, "head_dim": None,
        "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
    },
    fields=(
        Field("vocab_size", ("vocab_size",), int, 50257),
        Field("n_positions", ("max_positions",), int, 1024),
        Field("n_embd", ("hidden",), int, 768),
        Field("n_layer", ("layers",), int, 12),
        Field("n_head", ("heads",), int, 12),
        Field("n_inner", ("ffn",), int),
        Field(
            "activation_function", ("activation",), str, "gelu_new",
            {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"},
        ),
        Field("resid_pdrop", ("hidden_dropout",), float, 0.1),
        Field("embd_pdrop", ("embedding_dropout",), float, 0.1),
        Field("attn_pdrop", ("attention_dropout",), float, 0.1),
        Field("layer_norm_epsilon", ("norm_eps",), float, 1e-5),
        Field("initializer_range", ("init_std",), float, 0.02),
        Field("tie_word_embeddings", ("tied_embeddings",), bool, True),
    ),
    constants={
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
    links=(
        Link("embedding.weight", "transformer.wte.weight"),
        Link("positions.weight", "transformer.wpe.weight"),
        *(
            Link(f"layers.{{}}.attention.{name}.{part}", f"{_BLOCK}.attn.c_attn.{part}", part == "weight", (third, 3))
            for third, name in enumerate("qkv")
            for part in ("weight", "bias")
        ),
        *(
            Link(f"layers.{{}}.{ours}.{part}", f"{_BLOCK}.{theirs}.{part}", part == "weight")
            for ours, theirs in (("attention.out", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj"))
            for part in ("weight", "bias")
        ),
        *(
            Link(f"{ours}.{part}", f"{theirs}.{part}")
            for ours, theirs in (
                ("layers.{}.norm1", f"{_BLOCK}.ln_1"), ("layers.{}.norm2", f"{_BLOCK}.ln_2"),
                ("final_norm", "transformer.ln_f"),
            )
            for part in ("weight", "bias")
        ),
        Link("head.weight", HEAD),
    ),
    settle=_settle,
    prefix="transformer.",
    inert=frozenset(
        {
            "n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
            "summary_proj_to_labels", "summary_first_dropout",
        }
    ),
    buffers=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
)  # fmt: skip
