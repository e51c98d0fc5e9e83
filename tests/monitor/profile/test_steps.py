"""Which steps are profiled, and what is said of YAML's sixty."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError
from engine.monitor.profile.steps import profiled_steps
from tests.launch.test_settings import compose


def test_both_ways_of_writing_it_on_the_command_line() -> None:
    for written in ("profile.steps=10:12", "profile.steps='10:12'"):
        assert profiled_steps(compose(written).profile.steps, 12) == (10, 12)
    assert profiled_steps(compose().profile.steps, 12) is None


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("612", "write profile.steps='10:12', in a YAML file with the quotes"),  # what YAML makes of 10:12
        ("10-12", "is no range of steps"),
        ("0:3", "is not within the steps of the run"),
        ("12:10", "is not within"),
        ("90:101", "1 to train.steps=100"),
    ],
)
def test_mistakes(written: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        profiled_steps(written, 100)
