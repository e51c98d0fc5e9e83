"""Run folders with random weights, as a training run would leave them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.entry import Entry
from engine.checkpoint.reader import open_checkpoint
from engine.config import Config, DataConfig, ModelConfig, ObjectiveConfig
from engine.data.tokenizer import Tokenizer
from engine.models.transformer import parameter_shapes
from tests.checkpoint.helpers import save

LLAMA = ModelConfig(
    name="toy-llama", layers=2, hidden=32, heads=4, kv_heads=2, ffn=40, tied_embeddings=False, max_positions=64
)
GPT = ModelConfig(
    name="toy-gpt", layers=2, hidden=32, heads=4, ffn=40, norm="layernorm", positions="learned", max_positions=64,
    activation="gelu_tanh", attention_bias=True, attention_out_bias=True, mlp_bias=True, hidden_dropout=0.1,
)  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "llama-tied-biases": dataclasses.replace(
        LLAMA, tied_embeddings=True, attention_bias=True, attention_out_bias=True, mlp_bias=True, head_dim=6
    ),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_dim=6),
    "gpt": GPT,
    "gpt-untied": dataclasses.replace(GPT, tied_embeddings=False, activation="gelu"),
}
VOCAB = 320  # more than the tokenizer has
CONTEXT = 48


def random_weights(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return every tensor of the model by its name, nowhere at the zeros and ones it would start with."""
    generator = torch.Generator().manual_seed(3)
    shapes = parameter_shapes(config, VOCAB)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) * 0.25 for name, shape in shapes.items()}


def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(["the sea, the wind and the ship"] * 50, vocab_size=290)


def save_run(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
    cuts: int = 2,
    step: int = 7,
    lies: dict[str, Any] | None = None,
    tokenizer_name: str | None = None,
    objective: ObjectiveConfig | None = None,
) -> dict[str, Tensor]:
    """Save a run whose ranks cut every tensor into `cuts` ranges of rows; return its weights.

    `lies` are values of the model that the checkpoint claims against the truth.
    """
    weights = random_weights(config, dtype)
    entries = []
    for name, tensor in weights.items():
        start = 0
        for part in tensor.chunk(cuts):
            offsets = (start, *(0,) * (tensor.ndim - 1))
            for state, values in (("master", part), ("exp_avg", part * 0), ("exp_avg_sq", part * 0)):
                entries.append(Entry(f"{state}/{name}", tuple(tensor.shape), offsets, values))
            start += part.shape[0]
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    meta: dict[str, Any] = {
        "config": dataclasses.asdict(
            Config(model=config, data=DataConfig(seq_len=CONTEXT), objective=objective or ObjectiveConfig())
        ),
        "vocab_size": VOCAB,
        "tokenizer": tokenizer_name or ("tokenizer.json" if tokenizer else None),
        "consumed_samples": 56, "optimizer_steps": 7.0,
        "loss_scaler": {"scale": 1.0, "clean_steps": 0},
    }  # fmt: skip
    meta["config"]["model"].update(lies or {})
    result = save(folder / "checkpoints", step, entries, meta)
    assert result.ok, result.error
    return weights


def masters(run: Path, step: int = 0) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, in their stored dtype; it must hold nothing else."""
    checkpoint = open_checkpoint(run / "checkpoints" / f"step_{step:08d}")
    tensors = {}
    for name in checkpoint.names():
        assert name.startswith("master/")
        tensors[name.removeprefix("master/")] = checkpoint.whole(name)
    return tensors
