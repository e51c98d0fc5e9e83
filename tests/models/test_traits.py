"""Every trait of dense decoders equals the plain model's, on layouts that together cover what a trait meets there."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from engine.config import Config
from tests.layouts import GPT, make_config, train_layout, train_oracle
from tests.parallel.test_parity import compare
from tests.ranks import run_ranks

BASE: dict[str, Any] = {"layers": 4, "hidden": 16, "heads": 4, "kv_heads": 4, "ffn": 24, "init_std": 0.2}
BIASES = {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1}
SP2 = {"tp": 2, "sequence_parallel": True}
PIPE = {"pp": 2, "recompute": "full"}
ALL = {"tp": 2, "sequence_parallel": True, "pp": 2, "schedule": "interleaved", "virtual_stages": 2}

NEOX = {
    **BASE, **BIASES, "block": "parallel_two_norms", "norm": "layernorm", "rope_fraction": 0.5, "activation": "gelu",
    "init": "small", "output_init": "wang", "tied_embeddings": False,
}  # fmt: skip
GPT_J = {
    **BASE, "head_dim": 8, "block": "parallel", "norm": "layernorm", "rope_fraction": 0.5, "rope_interleaved": True,
    "activation": "gelu_tanh", "mlp_bias": True, "head_bias": True, "tied_embeddings": False, **DROPOUT,
}  # fmt: skip
PALM = {
    **BASE, "kv_heads": 1, "head_dim": 6, "block": "parallel", "norm": "layernorm_no_bias", "activation": "swiglu",
    "logit_scale": None, "init": "fan_in", "output_init": "plain",
}  # fmt: skip
GLM = {
    **BASE, **BIASES, **DROPOUT, "block": "deepnorm_glm", "norm": "layernorm", "activation": "geglu",
    "embedding_grad": 0.1, "output_init": "plain",
}  # fmt: skip
DEEPNORM = {**BASE, "block": "deepnorm", "init": "xavier", "activation": "geglu_tanh", "final_norm": False}
SANDWICH = {
    **BASE, "kv_heads": 2, "block": "sandwich", "activation": "squared_relu", "embedding_scale": None,
    "head_dim": 8, "rope_theta": 10.0, "rope_scaling": 8.0, "rope_scaling_context": 32, "init": "third",
}  # fmt: skip
POST = {**BASE, "block": "post_norm", "activation": "reglu", "norm": "layernorm_no_bias", "qk_norm": True}
OPT = {**GPT, "activation": "relu"}
BLOOM = {
    **BASE, **BIASES, **DROPOUT, "hidden": 24, "heads": 6, "kv_heads": 2, "positions": "alibi", "norm": "layernorm",
    "embedding_norm": True, "activation": "gelu_tanh", "attention_window": 9,
}  # fmt: skip
GPT_3 = {**GPT, "activation": "gelu", "attention_window": 5, "window_interval": 2, "attention_scale": 0.3}
GROK = {**BASE, "kv_heads": 2, "block": "sandwich", "attention_softcap": 0.5, "positions": "none"}
LAMDA = {
    **BASE, "head_dim": 8, "positions": "t5", "relative_buckets": 6, "relative_distance": 12, "activation": "geglu",
    "attention_scale": 1.0, "norm": "layernorm_no_bias",
}  # fmt: skip
GOPHER = {**BASE, **BIASES, "positions": "transformer_xl", "activation": "gelu", "attention_dropout": 0.1}
FIRST = {**BASE, **BIASES, "block": "post_norm", "norm": "layernorm", "positions": "sinusoidal", "activation": "relu",
         "final_norm": False}  # fmt: skip
PANGU = {**GPT, "kv_heads": 2, "query_layer": True, "tied_embeddings": True}

# Model, layout, and the number of ranks; those with as many share their processes, which are slow to start.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "neox-sp2-selective": (NEOX, {**SP2, "recompute": "selective"}, 2),
    "gptj-tp2-pp2": (GPT_J, {"tp": 2, **PIPE}, 4),
    "palm-all": (PALM, ALL, 4),
    "glm-all": (GLM, {**ALL, "recompute": "full"}, 4),
    "deepnorm-pp2": (DEEPNORM, PIPE, 2),
    "sandwich-sp2-dp2": (SANDWICH, SP2, 4),
    "post-tp2": (POST, {"tp": 2}, 2),
    "opt-dp2": (OPT, {}, 2),
    "bloom-sp2-pp2": (BLOOM, {**SP2, "pp": 2}, 4),
    "gpt3-pp2-selective": (GPT_3, {"pp": 2, "recompute": "selective"}, 2),
    "grok-tp4": (GROK, {"tp": 4}, 4),
    "lamda-all": (LAMDA, {**ALL, "recompute": "full"}, 4),
    "lamda-dp2": (LAMDA, {"pp": 2, "recompute": "selective"}, 4),
    "gopher-all": (GOPHER, {**ALL, "recompute": "full"}, 4),
    "gopher-selective": (GOPHER, {"tp": 2, "recompute": "selective"}, 2),
    "first-sp2": (FIRST, SP2, 2),
    "pangu-all": (PANGU, {**ALL, "recompute": "full"}, 4),
}
REFERENCE = ("gopher-selective", "gpt3-pp2-selective", "bloom-sp2-pp2", "palm-all")  # run without our kernels
STEPS = 2


def configuration(name: str) -> Config:
    model, parallel, _ = CASES[name]
    return make_config(model=model, parallel=parallel, ops={"backend": "reference" if name in REFERENCE else "auto"})


def train_all(rank: int, world: int, configs: list[Config]) -> list[dict[str, Any]]:
    return [train_layout(rank, world, config, STEPS, masked=True) for config in configs]


@functools.cache
def trained(world: int) -> dict[str, list[dict[str, Any]]]:
    """Return what each rank of this many says of each case."""
    names = [name for name in CASES if CASES[name][2] == world]
    ranks = run_ranks(world, train_all, [configuration(name) for name in names])
    return {name: [told[number] for told in ranks] for number, name in enumerate(names)}


# What of a model matters: (model, field, another value) must change its training.
CHANGES: list[tuple[dict[str, Any], str, Any]] = [
    (NEOX, "block", "parallel"), (NEOX, "block", "pre_norm"), (NEOX, "rope_fraction", 1.0), (NEOX, "init", "normal"),
    (NEOX, "output_init", "scaled"), (NEOX, "output_init", "plain"), (GPT_J, "rope_interleaved", False),
    (GPT_J, "head_bias", False), (PALM, "logit_scale", 1.0), (PALM, "norm", "layernorm"), (PALM, "init", "small"),
    (GLM, "block", "deepnorm"), (GLM, "activation", "geglu_tanh"), (DEEPNORM, "block", "post_norm"),
    (DEEPNORM, "init", "normal"), (SANDWICH, "block", "pre_norm"), (SANDWICH, "activation", "relu"),
    (SANDWICH, "embedding_scale", 1.0), (SANDWICH, "rope_scaling", 1.0), (SANDWICH, "rope_scaling_low", 0.5),
    (SANDWICH, "rope_scaling_high", 3.0), (SANDWICH, "rope_scaling_context", 64), (SANDWICH, "init", "normal"),
    (POST, "final_norm", False), (POST, "activation", "swiglu"), (BLOOM, "positions", "none"),
    (BLOOM, "attention_window", 8), (GPT_3, "window_interval", 1), (GPT_3, "attention_scale", None),
    (GROK, "attention_softcap", 0.0), (GROK, "positions", "rope"), (LAMDA, "relative_buckets", 8),
    (LAMDA, "relative_distance", 14), (LAMDA, "positions", "none"), (LAMDA, "attention_scale", None),
    (GOPHER, "positions", "none"), (FIRST, "positions", "none"), (PANGU, "query_layer", False),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_traits_equal_the_plain_model(name: str) -> None:
    compare(configuration(name), trained(CASES[name][2])[name], 1e-10, masked=True, steps=STEPS)


@pytest.mark.parametrize(("model", "field", "value"), CHANGES, ids=[f"{field}-{value}" for _, field, value in CHANGES])
def test_every_trait_matters(model: dict[str, Any], field: str, value: Any) -> None:
    """The comparison above is not of things that never act."""
    first, second = (train_oracle(make_config(model=m), 2) for m in (model, {**model, field: value}))
    assert abs(first["losses"][1] / second["losses"][1] - 1) > 1e-8
