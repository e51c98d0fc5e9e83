"""Dynamic loss scaling: halves, doubles, stops, and resumes where it was."""

from __future__ import annotations

import pytest

from engine.errors import EngineError
from engine.optim.scaler import LossScaler


def test_halves_at_once_and_doubles_after_a_clean_window() -> None:
    scaler = LossScaler(1024.0, dynamic=True, window=3)
    for overflow in (False, False, True, False, False):
        scaler.update(overflow)
    assert (scaler.scale, scaler.clean_steps) == (512.0, 2)
    scaler.update(False)
    assert (scaler.scale, scaler.clean_steps) == (1024.0, 0)


def test_stops_below_the_minimum_with_a_way_out() -> None:
    scaler = LossScaler(2.0, dynamic=True, minimum=1.0)
    scaler.update(True)
    with pytest.raises(EngineError, match="precision=bf16"):
        scaler.update(True)


def test_does_nothing_unless_dynamic() -> None:
    scaler = LossScaler()
    scaler.update(True)
    scaler.load({"scale": 7.0, "clean_steps": 1, "dynamic": True})
    assert (scaler.scale, scaler.clean_steps) == (1.0, 0)


def test_state_travels() -> None:
    scaler = LossScaler(64.0, dynamic=True, window=5)
    scaler.update(False)
    other = LossScaler(1.0, dynamic=True, window=5)
    other.load(scaler.state())
    assert other.state() == scaler.state()


def test_fp16_after_another_precision_starts_with_its_own_scale() -> None:
    scaler = LossScaler(2.0**16, dynamic=True)
    scaler.load(LossScaler().state())
    assert scaler.scale == 2.0**16
