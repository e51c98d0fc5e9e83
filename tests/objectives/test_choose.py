"""Special tokens: which are reserved, under which names they are found, what is said when they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import DataConfig, ObjectiveConfig
from engine.data.tokenizer import EOD, Tokenizer
from engine.errors import ConfigError, DataError
from engine.objectives.choose import make_objective, special_tokens
from engine.objectives.packed import Packed
from engine.objectives.span_corruption import SpanCorruption
from tests.objectives.words import Words

TEXTS = ["the sea and the wind"] * 5


def test_an_objective_wants_its_tokens_and_no_more_sentinels_than_spans() -> None:
    def wanted(name: str) -> list[str]:
        return special_tokens(ObjectiveConfig(name=name), DataConfig(seq_len=128))

    assert wanted("causal") == wanted("prefix") == []
    assert wanted("masked") == wanted("unified") == ["[MASK]"]
    assert wanted("glm") == ["[MASK]", "[gMASK]", "<sop>", "<eop>"]
    assert wanted("alexatm") == ["[CLM]"]
    assert wanted("fim") == ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    assert wanted("span_corruption") == [f"<extra_id_{n}>" for n in range(6)]  # 117 tokens: 18 of noise, 6 spans
    assert wanted("ul2") == ["[R]", "[S]", "[X]", *(f"<extra_id_{n}>" for n in range(16))]


def test_a_trained_tokenizer_reserves_them(tmp_path: Path) -> None:
    wanted = special_tokens(ObjectiveConfig(name="ul2"), DataConfig(seq_len=64))
    Tokenizer.train(TEXTS, 300, wanted).save(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    ids = [tokenizer.find(name) for name in (EOD, *wanted)]
    assert len(set(ids)) == len(ids)
    assert tokenizer.encode("the sea<extra_id_1>") == [*tokenizer.encode("the sea"), tokenizer.find("<extra_id_1>")]
    made = make_objective(ObjectiveConfig(name="ul2"), DataConfig(seq_len=64), 1, tokenizer)
    assert isinstance(made, Packed)


def test_published_names_are_known() -> None:
    tokenizer = Tokenizer.train(TEXTS, 300, ["[NLU]", "[NLG]", "[S2S]", *(f"<extra_id_{n}>" for n in range(20))])
    make_objective(ObjectiveConfig(name="ul2"), DataConfig(seq_len=64), 1, tokenizer)
    assert tokenizer.find("[X]", "[NLG]") == tokenizer.find("[NLG]")


def test_what_a_tokenizer_lacks_is_named() -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    with pytest.raises(DataError, match=r"lacks the token \[MASK\] or <mask> or .*data\.tokenizer=train") as caught:
        make_objective(ObjectiveConfig(name="masked"), DataConfig(), 1, tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="lacks the token <extra_id_0>"):
        make_objective(ObjectiveConfig(name="span_corruption"), DataConfig(), 1, tokenizer)
    with pytest.raises(ConfigError, match=r"objective=fim needs a tokenizer"):
        make_objective(ObjectiveConfig(name="fim"), DataConfig(), 1, None)


def test_a_range_of_sentinels_that_is_too_short_says_how_long_it_is() -> None:
    words = Words(lacking=("<extra_id_100>",))
    t5 = ObjectiveConfig(name="span_corruption")
    with pytest.raises(DataError, match=r"<extra_id_0> to <extra_id_99>, but data\.seq_len=4096 can take \d+ spans"):
        make_objective(t5, DataConfig(seq_len=4096), 1, words)
    made = make_objective(t5, DataConfig(seq_len=2048), 1, words)
    assert isinstance(made, Packed)
    assert isinstance(made.noise, SpanCorruption)
    assert len(made.noise.sentinels) == 93
