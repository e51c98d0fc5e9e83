"""Every rule of the objective: it fires, says so in one line, and its own advice works."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from engine.config import Config
from engine.errors import ConfigError
from engine.validate import validate

RULES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"objective.name": "gml"}, ("objective.name=gml", "Did you mean 'glm'")),
    ({"objective.noise": 0.2}, ("objective.noise", "objective=causal", "objective.noise=null", "objective=masked")),
    ({"objective.name": "glm", "objective.spm": 0.5}, ("objective.spm", "objective=glm", "objective=fim")),
    ({"objective.name": "masked", "objective.noise": 1.0}, ("objective.noise=1.0", "between")),
    ({"objective.name": "masked", "objective.noise": "nan"}, ("objective.noise=nan", "between")),
    ({"objective.name": "glm", "objective.shortest_end": 0.0}, ("objective.shortest_end=0.0",)),
    ({"objective.name": "alexatm", "objective.endings": 1.5}, ("objective.endings=1.5", "0 to 1")),
    ({"objective.name": "fim", "objective.rate": -1}, ("objective.rate=-1",)),
    ({"objective.name": "fim", "objective.level": "word"}, ("objective.level=word", "character, token")),
    ({"objective.name": "span_corruption", "objective.span": 0.5}, ("objective.span=0.5", "1 or more")),
    ({"objective.name": "ul2", "objective.denoisers": []}, ("objective.denoisers=[]", "mode: R")),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "Q", "noise": 0.1, "span": 3}]}, ("'Q'", "mode R, S")),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "R", "noise": 0.1}]}, ("'R'", "a span")),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "S", "noise": 0.1, "span": 3}]}, ("'S'", "mode R, S")),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "S", "noise": 2}]}, ("noise=2",)),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "X", "noise": 0.1, "span": 0}]}, ("span=0",)),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "S", "noise": 0.1, "weight": 0}]}, ("weight=0",)),
    ({"objective.name": "glm", "objective.block_positions": True},
     ("objective.block_positions=true", "model.positions=rope", "model.positions=learned_2d")),
    ({"objective.name": "prefix", "model.positions": "alibi"},
     ("model.positions=alibi", "objective=prefix", "model.positions=rope", "objective=causal")),
    ({"objective.name": "ul2", "model.positions": "t5"}, ("model.positions=t5", "objective=ul2")),
    ({"objective.name": "masked", "data.valid": {"books": "books.txt"}},
     ("data.valid", "objective=masked", "leave it out", "causal or fim or prefix")),
    ({"objective.name": "masked", "model.positions": "none"}, ("model.positions=none", "objective=masked", "rope")),
    ({"objective.name": "unified", "model.positions": "learned", "model.query_layer": True},
     ("model.query_layer=true", "objective=unified", "model.query_layer=false")),
    ({"objective.name": "ul2", "objective.denoisers": [{"mode": "S", "noise": 0.75}]}, ("noise=0.75", "0.5 or less")),
    ({"model.positions": "learned_2d"}, ("model.positions=learned_2d", "objective=causal", "model.positions=learned")),
    ({"objective.name": "prefix", "data.eod_loss": False}, ("data.eod_loss=false", "objective=prefix")),
    ({"objective.name": "span_corruption", "data.tokenizer_vocab": 260},
     ("data.tokenizer_vocab=260", "objective=span_corruption", "data.tokenizer_vocab=269")),
    ({"objective.name": "alexatm", "data.seq_len": 3}, ("data.seq_len=3", "no room")),
    ({"objective.name": "glm", "objective.block_positions": True, "model.positions": "learned_2d",
      "model.max_positions": 128}, ("data.seq_len=256", "model.max_positions=128")),
]  # fmt: skip


def make(settings: dict[str, Any]) -> Config:
    config = OmegaConf.structured(Config)
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    made: Any = OmegaConf.to_object(config)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize(("settings", "named"), RULES, ids=[str(rule[0])[1:60] for rule in RULES])
def test_rule(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(make(settings), None)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message, message


def test_advice_works() -> None:
    spans = {"objective.name": "span_corruption", "data.tokenizer_vocab": 269}
    validate(make(spans), None)
    two = {"objective.name": "glm", "objective.block_positions": True, "model.positions": "learned_2d"}
    validate(make(two), None)


def test_what_is_null_is_what_was_published() -> None:
    for name in ("prefix", "masked", "span_corruption", "ul2", "glm", "alexatm", "fim", "unified"):
        validate(make({"objective.name": name}), None)
