"""Small Hugging Face models with random weights, to hold ours against."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

VOCAB = 61

LLAMAS: dict[str, dict[str, Any]] = {
    "grouped-untied": {"num_key_value_heads": 2},
    "tied-biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "one-kv-head-wide": {"num_key_value_heads": 1, "head_dim": 10, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
}
GPT2S: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied-narrow-exact-gelu": {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"},
}


QWEN3S: dict[str, dict[str, Any]] = {
    "grouped-tied-biases": {"num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True},
}


class ExactRMSNorm(LlamaRMSNorm):
    """transformers takes the statistics of RMSNorm in float32, whatever the input: too coarse for an oracle at 1e-10.

    This keeps the input's precision; the formula is theirs.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def random_llama(**overrides: Any) -> LlamaForCausalLM:
    """Return a small Llama in float64 with every weight, norms and biases too, random."""
    model = _randomised(LlamaForCausalLM(LlamaConfig(**_SMALL, **overrides)))
    exact_norms(model)
    return model


def random_qwen3(**overrides: Any) -> Qwen3ForCausalLM:
    """Return a small Qwen3, with norms on queries and keys, in float64 with every weight random."""
    model = _randomised(Qwen3ForCausalLM(Qwen3Config(**_SMALL, head_dim=10, **overrides)))
    exact_norms(model)
    return model


_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "attn_implementation": "sdpa",  # eager attention takes its softmax in float32
}  # fmt: skip


def exact_norms(model: Any) -> None:
    """Make the RMSNorms of a model, if it has any, keep the precision of their input."""
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm | Qwen3RMSNorm):
            module.__class__ = ExactRMSNorm


def random_gpt2(**overrides: Any) -> GPT2LMHeadModel:
    """Return a small GPT-2 in float64 with every weight random."""
    config = GPT2Config(
        **{
            "vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
            "bos_token_id": None, "eos_token_id": None, "attn_implementation": "sdpa", **overrides,
        }
    )  # fmt: skip
    return _randomised(GPT2LMHeadModel(config))


def _randomised(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.25)
    return model


def config_json(model: Any) -> dict[str, Any]:
    """Return what `save_pretrained` writes to config.json."""
    model.config.architectures = [type(model).__name__]
    return json.loads(model.config.to_json_string())


def random_tokens(samples: int = 2, length: int = 23) -> Tensor:
    """Return int64 [samples, length]."""
    return torch.randint(0, VOCAB, (samples, length), generator=torch.Generator().manual_seed(4))
