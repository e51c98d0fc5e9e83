"""Each preset in conf/model/ has the published or computed number of parameters, to the unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engine.config import ModelConfig
from engine.models.transformer import count_parameters

PRESETS = Path(__file__).resolve().parents[2] / "conf" / "model"
PUBLISHED = {"llama2-7b": 6_738_415_616, "llama3-8b": 8_030_261_248, "gpt2-124m": 124_439_808}


def preset(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((PRESETS / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    config = preset(name)
    assert config.vocab_size is not None
    assert count_parameters(config, config.vocab_size) == PUBLISHED[name]


def computed(config: ModelConfig, vocab: int) -> int:
    """Count by hand, from the definitions of the layers."""
    h, kv = config.hidden, config.kv_heads or config.heads
    dim = config.head_dim or h // config.heads
    gated = config.activation == "swiglu"
    norm = h if config.norm == "rmsnorm" else 2 * h
    attention = h * dim * (2 * config.heads + 2 * kv)
    attention += config.attention_bias * dim * (config.heads + 2 * kv) + config.attention_out_bias * h
    mlp = (2 + gated) * h * config.ffn + config.mlp_bias * ((1 + gated) * config.ffn + h)
    ends = vocab * h * (1 if config.tied_embeddings else 2) + norm
    ends += {"learned": 1, "learned_2d": 2}.get(config.positions, 0) * config.max_positions * h
    return config.layers * (attention + mlp + 2 * norm) + ends


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_counts_as_its_traits_say(name: str) -> None:
    config = preset(name)
    assert config.name == name
    for tied in (False, True):
        for vocab in (config.vocab_size or 4096, 257):
            changed = replace(config, tied_embeddings=tied)
            assert count_parameters(changed, vocab) == computed(changed, vocab)


def test_two_tables_of_positions() -> None:
    config = replace(preset("gpt-tiny"), positions="learned_2d")
    assert count_parameters(config, 257) == computed(config, 257)
