"""A slow rank is named when it is slow all along, and only then."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from engine.device import Device
from engine.flight.recorder import FLIGHT
from engine.flight.stragglers import BusyClock, Stragglers


def watch(times: Callable[[int], list[float]], steps: int = 150, factor: float = 2.0) -> list[tuple[int, str]]:
    judge = Stragglers(factor)
    told = [(step, judge.observe(times(step))) for step in range(steps)]
    return [(step, text) for step, text in told if text is not None]


def test_a_slow_rank_is_named_and_again_after_a_while() -> None:
    told = watch(lambda step: [0.1, 0.1, 0.5 if step >= 20 else 0.1, 0.12])
    assert [step for step, _ in told] == [24, 124]
    assert told[0][1].startswith("rank 2 is slow: it works ")
    assert "5.0 times as long" in told[1][1]


@pytest.mark.parametrize(
    "times",
    [
        lambda step: [0.1, 0.15, 0.19],
        lambda step: [0.1, 5.0 if step % 10 == 3 else 0.1],  # a hiccup now and then
        lambda step: [9.0],
        lambda step: [0.0, 0.0],
    ],
)
def test_no_false_alarm(times: Callable[[int], list[float]]) -> None:
    assert watch(times) == []


def test_factor_0_is_silent() -> None:
    assert watch(lambda step: [0.1, 9.0], factor=0.0) == []


def test_waiting_is_not_work() -> None:
    clock = BusyClock(Device(torch.device("cpu"), "gloo"))
    entry = FLIGHT.start("all_reduce", "dp", 8, waits=True)
    time.sleep(0.2)
    FLIGHT.done(entry)
    time.sleep(0.05)
    assert 0.05 <= clock.lap() < 0.2
    assert clock.lap() < 0.05
