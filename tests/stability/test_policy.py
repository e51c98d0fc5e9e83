"""The policy: its presets load into the schema and hold, and what cannot work is refused."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from engine.config import StabilityConfig
from engine.errors import ConfigError
from engine.stability import policy as module
from engine.stability.policy import check_policy

CONF = Path(__file__).resolve().parents[2] / "conf" / "stability"
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))


def load(name: str) -> StabilityConfig:
    """Read a preset over what its defaults list names, into the schema: unknown keys and wrong types fail."""
    parts: list[Any] = []
    names = [name]
    while names:
        part = OmegaConf.to_container(OmegaConf.load(CONF / f"{names.pop()}.yaml"))
        assert isinstance(part, dict)
        names += part.pop("defaults", [])
        parts.insert(0, part)
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StabilityConfig), *parts))
    assert isinstance(merged, StabilityConfig)
    return merged


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_holds(name: str) -> None:
    check_policy(load(name))


def test_presets_are_what_their_names_say() -> None:
    assert PRESETS == ["default", "glm", "off", "olmo", "opt", "palm"]
    assert load("default") == StabilityConfig()
    assert not load("off").watch
    palm, glm, opt, olmo = map(load, ("palm", "glm", "opt", "olmo"))
    assert (palm.min_rewind, palm.skip_least, palm.skip_least * palm.widen) == (100, 200, 500)
    assert (opt.skip_least, opt.lower_after, opt.lr_factor) == (0, 0, 0.9)
    assert (glm.skip_least, glm.skip_before >= 100) == (200, True)
    assert (olmo.z, olmo.norm_far, olmo.window, olmo.warm, olmo.rollback) == (6.0, 2.0, 128, 64, False)
    assert len({tuple(asdict(load(name)).items()) for name in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("window", 63, r"stability\.window=63 cannot hold stability\.warm=64; write stability\.window=64 or more"),
        ("norm_alarms", 129, r"stability\.window=128 cannot hold stability\.norm_alarms=129; "),
        ("span", 2, r"stability\.span=2 cannot hold stability\.alarms=3"),
        ("warm", 1, r"stability\.warm=1 is out of range; write 8 or more"),
        ("tries", -1, r"stability\.tries=-1 is out of range; write 0 or more"),
        ("window", 10**30, r"stability\.window=1\d+ is out of range; write 1,000,000,000 or less"),
        ("snapshot_mb", 1e308, r"stability\.snapshot_mb=1e\+308 is out of range; write 1,000,000,000 or less"),
        ("widen", 1e6, r"stability\.widen=1e\+06 would have try 3 pass over more than 10,000,000 steps of data; write"),
        ("skip_least", 10**8, r"stability\.widen=2 would have try 3 pass over more than 10,000,000 steps"),
        ("lr_hold", 0, r"stability\.lr_hold=0 is out of range; write 1 or more"),
        ("z", float("nan"), r"stability\.z=nan is out of range; write more than 0"),
        ("norm_ratio", 1.0, r"stability\.norm_ratio=1\.0 is out of range; write more than 1"),
        ("lr_factor", 1.5, r"stability\.lr_factor=1\.5 would raise it; write a number up to 1"),
        ("clip_factor", 0.0, r"stability\.clip_factor=0\.0 is out of range; write more than 0"),
        ("skip", "deffer", r"stability\.skip=deffer is unknown\. Did you mean 'defer'\?"),
        ("skip_least", 0, r"stability\.skip_least=0 passes no data over.*write stability\.skip_least=50, or"),
    ],
)
def test_what_cannot_work_is_refused(field: str, value: object, message: str) -> None:
    policy = StabilityConfig()
    setattr(policy, field, value)
    with pytest.raises(ConfigError, match=message):
        check_policy(policy)


def test_every_number_has_a_bound() -> None:
    bounded = {*module._AT_LEAST, *module._ABOVE, *module._NOT_BELOW}
    numbers = {field.name for field in fields(StabilityConfig) if not isinstance(field.default, (bool, str))}
    assert numbers == bounded
    for field in numbers:
        policy = StabilityConfig()
        setattr(policy, field, -5)
        with pytest.raises(ConfigError, match=rf"stability\.{field}=-5"):
            check_policy(policy)
