"""Traits that do not go together are refused in a line that names both, and what to write instead."""

from __future__ import annotations

import re

import pytest

from engine.errors import ConfigError
from engine.validate import validate
from tests.validate.test_rules import make

REFUSED = [
    ("model.head_dim=33", ("model.positions=rope", "33", "model.head_dim=34")),
    ("model.rope_fraction=0.3", ("model.rope_fraction=0.3", "64 dimensions", "19.2", "model.rope_fraction=0.3125")),
    ("model.rope_fraction=0.01", ("model.rope_fraction=0.01", "model.rope_fraction=0.03125")),
    ("model.rope_fraction=1.5", ("model.rope_fraction=1.5", "1 or less")),
    ("model.rope_scaling=0.5", ("model.rope_scaling=0.5", "1 or more")),
    ("model.rope_scaling_high=1", ("model.rope_scaling_high=1", "model.rope_scaling_low=1", "high=4")),
    ("model.positions=sinusoidal model.hidden=255 model.head_dim=64", ("model.hidden=255", "model.hidden=256")),
    ("model.positions=transformer_xl model.hidden=255 model.head_dim=64", ("transformer_xl", "model.hidden=256")),
    ("model.positions=t5 model.relative_distance=16",
     ("model.relative_distance=16", "model.relative_buckets=32", "model.relative_distance=128")),
    ("model.query_layer=true", ("model.query_layer=true", "model.positions=rope", "model.positions=learned")),
    ("model.window_interval=2", ("model.window_interval=2", "model.attention_window", "model.window_interval=1")),
    ("model.window_interval=5 model.attention_window=8", ("model.window_interval=5", "model.layers=4")),
    ("model.attention_window=0", ("model.attention_window=0", "1 or more")),
    ("model.attention_softcap=-1", ("model.attention_softcap=-1", "0 or more")),
    ("model.attention_scale=0", ("model.attention_scale=0", "above 0")),
    ("model.logit_scale=0", ("model.logit_scale=0", "above 0")),
    ("model.block=paralel", ("model.block=paralel", "'parallel'")),
    ("model.init=smal", ("model.init=smal", "'small'")),
    ("model.output_init=wong", ("model.output_init=wong", "'wang'")),
    ("model.norm=layernorm_nobias", ("model.norm=layernorm_nobias", "'layernorm_no_bias'")),
    ("ops.overrides.attention=cpu model.positions=t5",
     ("ops.overrides.attention=cpu", "model.positions=t5", "ops.overrides.attention=auto")),
    ("ops.overrides.attention=cpu model.attention_softcap=30", ("model.attention_softcap=30", "attention=auto")),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "named"), REFUSED, ids=[overrides for overrides, _ in REFUSED])
def test_refusals(overrides: str, named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(make(*overrides.split()), None)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message
    advice = re.search(r"write (\w+\.\w+=[^\s;,]+?)\.?( or |$)", message)
    if advice is not None:  # what it says to write works
        validate(make(*overrides.split(), advice[1]), None)
