"""Each preset in conf/model/ has the published or computed number of parameters, to the unit."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engine.config import Config, ModelConfig
from engine.errors import ConfigError
from engine.models.presets import read_preset, read_presets, tiny_presets
from engine.models.transformer import count_parameters
from engine.validate import validate

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "model"
PRESETS = read_presets(FOLDER)

# Computed from the papers, apart from this code; where one is published to the unit, it is the same.
COMPUTED = {
    "gpt2-124m": 124_439_808, "llama2-7b": 6_738_415_616, "llama3-8b": 8_030_261_248,
    "bloom-176b": 176_247_271_424, "bloomberggpt-50b": 50_558_868_480, "chinchilla-70b": 70_063_890_432,
    "codegen-16b": 16_032_155_648, "codex-12b": 12_863_994_880, "deepseek-67b": 67_425_001_472,
    "galactica-120b": 121_332_899_840, "glm-130b": 128_697_794_560, "gopher-280b": 279_714_217_984,
    "gpt-neox-20b": 20_554_567_680, "gpt3-175b": 174_604_259_328, "hyperclova-82b": 81_084_436_480,
    "jurassic1-178b": 177_866_855_424,
    "lamda-137b": 137_440_014_336 + 32_000 * 8192,  # the former is without the embedding, as 137B is published
    "llama-65b": 65_285_660_672, "llama2-70b": 68_976_648_192, "llama3.1-405b": 405_853_388_800,
    "mt-nlg-530b": 529_600_819_200, "nemotron4-340b": 341_029_195_776, "opt-175b": 174_604_468_224,
    "palm-540b": 540_356_474_880, "pangu-alpha-200b": 206_861_008_896, "starcoder-15b": 15_517_456_384,
    "u-palm-540b": 540_356_474_880, "xuanyuan2-176b": 176_247_271_424, "yuan1-245b": 245_734_998_016,
}  # fmt: skip
TINY = tiny_presets(FOLDER)


@pytest.mark.parametrize("name", COMPUTED)
def test_parameters_to_the_unit(name: str) -> None:
    preset = PRESETS[name]
    assert preset.config.vocab_size is not None
    assert count_parameters(preset.config, preset.config.vocab_size) == preset.parameters == COMPUTED[name]


def test_every_preset_says_where_it_is_from() -> None:
    for name, preset in PRESETS.items():
        assert preset.config.name == name
        assert preset.title, name
        if name in COMPUTED:
            assert preset.published, name
            assert preset.source, name
            assert preset.uncertain, name


def computed(config: ModelConfig, vocab: int) -> int:
    """Count by hand, from the definitions of the layers."""
    h, kv = config.hidden, config.kv_heads or config.heads
    dim = config.head_dim or h // config.heads
    inner = config.heads * dim
    gated = config.activation in ("swiglu", "geglu", "geglu_tanh", "reglu")
    norm = 2 * h if config.norm == "layernorm" else h
    norms = {"parallel": 1, "sandwich": 4}.get(config.block, 2)
    attention = h * dim * (2 * config.heads + 2 * kv)
    attention += config.attention_bias * dim * (config.heads + 2 * kv) + config.attention_out_bias * h
    attention += (h * inner + 2 * inner) if config.positions == "transformer_xl" else 0
    mlp = (2 + gated) * h * config.ffn + config.mlp_bias * ((1 + gated) * config.ffn + h)
    ends = vocab * h * (1 if config.tied_embeddings else 2) + vocab * config.head_bias
    ends += norm * (config.final_norm + config.embedding_norm)
    tables = {"learned": 1, "learned_2d": 2}.get(config.positions, 0)
    ends += config.max_positions * h * (tables + config.query_layer)
    ends += config.heads * config.relative_buckets if config.positions == "t5" else 0
    return config.layers * (attention + mlp + norms * norm) + ends


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts_as_its_traits_say(name: str) -> None:
    config = replace(PRESETS[name].config, layers=2)
    for tied in (False, True):
        changed = replace(config, tied_embeddings=tied)
        assert count_parameters(changed, 257) == computed(changed, 257)


SIZES = {"name", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab_size", "max_positions", "init_std",
         "attention_window"}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_small_versions_keep_every_trait(name: str) -> None:
    small, large = TINY[name], PRESETS[name.removesuffix("-tiny")].config
    validate(Config(model=small), None)
    assert small.name == name
    assert count_parameters(small, 4096) < 12e6
    assert {k: v for k, v in asdict(small).items() if k not in SIZES} == {
        k: v for k, v in asdict(large).items() if k not in SIZES
    }
    assert (small.head_dim is None) == (large.head_dim is None or large.head_dim * large.heads == large.hidden)
    assert (small.kv_heads is None) == (large.kv_heads in (None, large.heads))
    assert (small.kv_heads == 1) == (large.kv_heads == 1)
    assert (small.attention_window is None) == (large.attention_window is None)


def test_small_versions_do_not_hide_files() -> None:
    assert "llama3.1-405b-tiny" in TINY
    assert not TINY.keys() & PRESETS.keys()
    assert not any(name.endswith("-tiny-tiny") for name in TINY)


@pytest.mark.parametrize("text", ["layers: [", "- 1", "layerz: 2"])
def test_what_is_no_preset_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml is no preset"):
        read_preset(tmp_path / "x.yaml")


def test_two_tables_of_positions() -> None:
    config = replace(PRESETS["gpt-tiny"].config, positions="learned_2d")
    assert count_parameters(config, 257) == computed(config, 257)
