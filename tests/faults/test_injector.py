"""Faults in numbers do exactly what they say, once, and only where and when they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layouts import make_config
from tests.ranks import run_ranks

PLAN = [
    {"what": "nan_grad", "rank": 1, "step": 2},
    {"what": "inf_loss", "rank": 0, "step": 3},
    {"what": "flip_grad", "rank": 1, "step": 5, "bit": 62},
    {"what": "flip_grad", "rank": 0, "step": 6, "attempt": 1},
    {"what": "flip_weight", "rank": 1, "step": 4, "bit": 51},
    {"what": "no_space", "rank": 0, "step": 7},
    {"what": "raise", "rank": 0, "step": 8, "phase": "optimizer"},
]


def train(rank: int, world: int, plan: list[dict[str, Any]]) -> dict[str, Any]:
    """Make steps 1 to 8, and step 2 again; return (loss, norm, applied) of each, and what was raised."""
    from engine.faults.injector import Injector
    from engine.faults.plan import read_plan
    from engine.flight.recorder import FLIGHT
    from tests.layouts import layout_stepper, make_batch, micro_batches

    config = make_config()
    stepper = layout_stepper(config)
    FLIGHT.listener = Injector(read_plan(plan), rank, 0, Path("unused"), stepper).on_phase
    told, errors, replicas = [], [], []
    for step in (1, 2, 3, 4, 5, 6, 7, 2, 8):
        FLIGHT.begin_step(step)
        micros = micro_batches(config, make_batch(config, step), stepper.mesh.dp.rank, stepper.mesh.dp.size)
        try:
            FLIGHT.phase("data")
            replicas.append(stepper.buckets.flat_params.double().abs().sum().item())
            if step == 7 and rank == 0:
                FLIGHT.background("save.shard", 7)
        except OSError as error:
            errors.append(str(error))
        try:
            values = stepper.run(step, micros, 1e-2).read()
        except RuntimeError as error:
            errors.append(str(error))
            continue
        told.append((values.loss, values.grad_norm, values.applied))
        FLIGHT.phase("log")
    return {"told": told, "errors": errors, "replicas": replicas}


def test_each_fault_strikes_once_where_it_should() -> None:
    healthy = run_ranks(2, train, [])
    spoilt = run_ranks(2, train, PLAN[:-1])
    one, two = (torch.tensor([step[1] for step in run[0]["told"]]) for run in (healthy, spoilt))
    assert [step[2] for step in spoilt[0]["told"]] == [True, False, False, True, False, *[True] * 4]
    assert str(spoilt[0]["told"]) == str(spoilt[1]["told"]), "all ranks must know the same"
    assert one[0] == two[0]
    assert torch.isnan(two[1])
    assert not torch.isfinite(torch.tensor(spoilt[0]["told"][2][0])), "the loss of step 3"
    assert two[4] > 1e6 or not torch.isfinite(two[4]), "the flipped gradient of step 5"
    apart = [a != b for a, b in zip(spoilt[0]["replicas"], spoilt[1]["replicas"], strict=True)]
    assert apart == [place == 4 for place in range(9)], "the weight of rank 1 is wrong after step 4, and written anew"
    assert spoilt[0]["errors"] == ["[Errno 28] No space left on device"]
    assert spoilt[1]["errors"] == []
    assert healthy[0]["errors"] == []


def test_a_raised_fault_names_itself() -> None:
    with pytest.raises(AssertionError, match="injected: raise: rank 0, step 1, forward"):
        run_ranks(1, train_raising)


def train_raising(rank: int, world: int) -> None:
    from engine.faults.injector import Injector
    from engine.faults.plan import read_plan
    from tests.layouts import layout_stepper

    injector = Injector(read_plan([{"what": "raise", "rank": 0}]), 0, 0, Path("unused"), layout_stepper(make_config()))
    injector.on_phase("backward", 1)
    injector.on_phase("forward", 1)
