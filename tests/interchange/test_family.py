"""config.json to ModelConfig and back: nothing is lost, nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.interchange.family import canonical
from engine.interchange.huggingface import family_for, from_hf, to_hf
from engine.models.transformer import count_parameters
from tests.interchange.saved_runs import GPT, LLAMA, MODELS

# As published on the Hub.
LLAMA2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
LLAMA3 = LLAMA2 | {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
    "intermediate_size": 14336, "max_position_embeddings": 8192, "num_key_value_heads": 8, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
}  # fmt: skip


@pytest.mark.parametrize(("published", "preset"), [(LLAMA2, "llama2-7b"), (LLAMA3, "llama3-8b"), (GPT2, "gpt2-124m")])
def test_published_configurations_are_our_presets(published: dict[str, Any], preset: str) -> None:
    conf = Path(__file__).resolve().parents[2] / "conf" / "model" / f"{preset}.yaml"
    assert from_hf(published, preset) == ModelConfig(**yaml.safe_load(conf.read_text()))


def test_a_published_qwen3_norms_its_queries_and_keys() -> None:
    """Qwen3-0.6B: its published 596,049,920 parameters include the norms of every head."""
    config = from_hf(QWEN3, "qwen3")
    assert config.qk_norm
    assert config.vocab_size is not None
    assert count_parameters(config, config.vocab_size) == 596_049_920


counts = st.integers(1, 64)
rates = st.floats(0, 0.9)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Any model that one of the families can express."""
    heads, dim = draw(st.integers(1, 8)), draw(st.integers(1, 8)) * 2
    common = {
        "name": "imported", "layers": draw(counts), "heads": heads, "hidden": heads * dim, "ffn": draw(counts),
        "vocab_size": draw(counts), "norm_eps": draw(st.floats(1e-8, 1e-2)), "max_positions": draw(counts),
        "tied_embeddings": draw(st.booleans()), "attention_dropout": draw(rates), "init_std": draw(rates),
    }  # fmt: skip
    if draw(st.booleans()):
        bias = draw(st.booleans())
        return ModelConfig(
            **common, kv_heads=draw(st.sampled_from([None, *(n for n in range(1, heads + 1) if heads % n == 0)])),
            head_dim=draw(st.sampled_from([None, 2, 4, dim])), rope_theta=draw(st.floats(1.0, 1e7)),
            attention_bias=bias, attention_out_bias=bias, mlp_bias=draw(st.booleans()),
        )  # fmt: skip
    return replace(
        GPT, **common, hidden_dropout=draw(rates), embedding_dropout=draw(rates),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh"])),
    )  # fmt: skip


@settings(deadline=None)
@given(models())
def test_there_and_back(config: ModelConfig) -> None:
    assert config.vocab_size is not None
    assert from_hf(to_hf(config, config.vocab_size)) == canonical(config)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_it_and_writes_what_we_read(name: str) -> None:
    from transformers import AutoConfig

    written = to_hf(MODELS[name], 99)
    theirs = AutoConfig.for_model(**{key: value for key, value in written.items() if key != "architectures"})
    theirs.architectures = written["architectures"]
    again = {key: value for key, value in theirs.to_dict().items() if key in theirs.to_diff_dict()}
    assert from_hf(again, "x") == from_hf(written, "x") == canonical(replace(MODELS[name], name="x", vocab_size=99))


REFUSED = [
    (LLAMA3, {"architectures": ["LamaForCausalLM"]}, "Did you mean 'LlamaForCausalLM'"),
    (LLAMA3, {"architectures": None}, "architectures"),
    (LLAMA3, {"architectures": ["LlamaForCausalLM", "GPT2LMHeadModel"]}, "architectures"),
    (LLAMA3, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling=.*llama3.*factor"),
    (LLAMA3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling=.*linear"),
    (LLAMA3, {"rope_scaling": "dynamic"}, "rope_scaling"),
    (LLAMA3, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters"),
    (LLAMA3, {"rope_parameters": {"rope_type": ["x"], "rope_theta": 1e4}}, "rope_parameters"),
    (LLAMA3, {"hidden_act": "relu"}, "hidden_act=relu"),
    (LLAMA3, {"sliding_window": 4096}, "sliding_window=4096"),
    (LLAMA3, {"quantization_config": {"bits": 4}}, "quantization_config"),
    (LLAMA3, {"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "auto_map"),
    (LLAMA3, {"hidden_size": "4096"}, "hidden_size='4096', which is no count"),
    (LLAMA3, {"num_hidden_layers": 0}, "num_hidden_layers=0"),
    (LLAMA3, {"num_hidden_layers": True}, "num_hidden_layers=True"),
    (LLAMA3, {"tie_word_embeddings": 1}, "tie_word_embeddings=1"),
    (LLAMA3, {"num_attention_heads": 30}, "num_attention_heads=30"),
    (LLAMA3, {"num_key_value_heads": 7}, "num_key_value_heads=7"),
    (QWEN3, {"use_sliding_window": True}, "use_sliding_window=True"),
    (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
    (QWEN3, {"head_dim": None}, "no head_dim"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    (GPT2, {"scale_attn_weights": False}, "scale_attn_weights=False"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention=True"),
    (GPT2, {"activation_function": "relu"}, "activation_function=relu"),
    (GPT2, {"n_embd": 1.5}, "n_embd=1.5"),
]  # fmt: skip


@pytest.mark.parametrize(("published", "change", "named"), REFUSED)
def test_what_we_cannot_represent_is_named(published: dict[str, Any], change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        from_hf(published | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": None, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_scaling": {"type": "default"}},
        {"head_dim": 128},
        {"mlp_bias": False},
        {"quantization_config": None},
    ],
)
def test_other_spellings_of_the_same_model(change: dict[str, Any]) -> None:
    assert from_hf(LLAMA3 | change) == from_hf(LLAMA3)


@dataclass
class Newer(ModelConfig):
    """A ModelConfig after someone added a trait."""

    window: int | None = None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (replace(LLAMA, norm="layernorm"), r"LlamaForCausalLM, which cannot express model\.norm=layernorm"),
        (replace(LLAMA, activation="gelu"), r"model\.activation=gelu"),
        (replace(LLAMA, attention_bias=True), r"model\.attention_bias=True with model\.attention_out_bias=False"),
        (replace(LLAMA, hidden=30, head_dim=8), r"model\.hidden=30"),
        (replace(GPT, kv_heads=2), r"GPT2LMHeadModel, which cannot express model\.kv_heads=2"),
        (replace(GPT, mlp_bias=False), r"model\.mlp_bias=False"),
        (Newer(window=512), r"model\.window=512"),
    ],
)
def test_a_model_no_family_has_is_named(config: ModelConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        to_hf(config, 99)
    assert family_for(Newer()).architecture == "LlamaForCausalLM"
