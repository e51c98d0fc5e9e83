"""The executor gives the one-process model's losses and gradients, for every schedule and transport."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.device import Device
from engine.parallel.pipeline import links
from engine.parallel.pipeline import schedule as sch
from engine.parallel.pipeline.executor import Executor
from engine.parallel.pipeline.schedule import Schedule
from engine.parallel.pipeline.stopwatch import Stopwatch
from tests.fake_cuda import run_fake_cuda
from tests.parallel.pipeline.ordered import Group, Network
from tests.parallel.pipeline.toy import ROWS, Stage, Toy, oracle, random_schedule
from tests.ranks import run_ranks

Result = tuple[list[float], list[Any]]  # losses and gradients of one stage


def _assert_like_one_process(results: list[Result], chunks: int, micros: int, scale: float = 1.0) -> None:
    losses, grads = oracle(len(results) * chunks, micros)
    np.testing.assert_allclose(results[-1][0], losses, rtol=0, atol=1e-12)
    for stage, (found, parts) in enumerate(results):
        assert found == [] or stage == len(results) - 1
        for chunk, grad in enumerate(parts):
            expected = grads[chunk * len(results) + stage].numpy() * scale
            np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-12 * scale)


def _all_schedules(stages: int) -> list[tuple[Schedule, int, int]]:
    """Return (schedule, micros, chunks): every kind, few and many micro-batches, and random valid orders."""
    cases: list[tuple[Schedule, int, int]] = []
    for micros in (1, stages, 2 * stages + 1):
        cases += [(sch.gpipe(stages, micros), micros, 1), (sch.one_f_one_b(stages, micros), micros, 1)]
        cases += [(sch.interleaved(stages, micros, chunks), micros, chunks) for chunks in (2, 3)]
    return cases + [(random_schedule(seed, stages, 4, 1 + seed % 3), 4, 1 + seed % 3) for seed in range(8)]


def _gloo_stage(rank: int, world: int) -> list[list[Any]]:
    groups = dist.new_group(), dist.new_group()
    results = []
    for schedule, micros, chunks in _all_schedules(world):
        stage = Stage(rank, schedule, chunks, groups)
        evaluation = Stage(rank, sch.forward_only(world, micros, chunks), chunks, groups)
        results.append([stage.run(micros), evaluation.run(micros), stage.run(micros, loss_scale=1024.0)])
    return results


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_gloo_ranks_equal_one_process(stages: int) -> None:
    per_rank = run_ranks(stages, _gloo_stage)
    for index, (_, micros, chunks) in enumerate(_all_schedules(stages)):
        steps, evaluations, scaled = zip(*(results[index] for results in per_rank), strict=True)
        _assert_like_one_process(list(steps), chunks, micros)
        _assert_like_one_process(list(scaled), chunks, micros, scale=1024.0)
        assert evaluations[-1][0] == steps[-1][0]
        assert all(grads == [] for _, grads in evaluations)


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_one_stage_needs_no_groups(chunks: int) -> None:
    stage = Stage(0, sch.interleaved(1, 4, chunks), chunks, (None, None))
    _assert_like_one_process([stage.run(4)], chunks, 4)


def test_every_schedule_sums_gradients_bitwise_alike() -> None:
    for schedule, chunks in ((sch.gpipe(1, 5), 1), (sch.one_f_one_b(1, 5), 1), (sch.interleaved(1, 5, 2), 2)):
        _, grads = Stage(0, schedule, chunks, (None, None)).run(5)
        _, expected = oracle(chunks, 5)
        assert all(np.array_equal(grad, want.numpy()) for grad, want in zip(grads, expected, strict=True))


def _run_ordered(
    monkeypatch: pytest.MonkeyPatch, schedule: Schedule, micros: int, chunks: int, shared: bool
) -> Network:
    """Train one step over `Network` and compare it with one process."""
    stages = len(schedule)
    network = Network(stages, shared)
    monkeypatch.setattr(links, "dist", network)

    def one_stage(rank: int) -> Result:
        return Stage(rank, schedule, chunks, (Group(rank, "activations"), Group(rank, "gradients"))).run(micros)

    _assert_like_one_process(network.run(one_stage), chunks, micros)
    return network


@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved", "random"]),
    st.integers(2, 5),
    st.integers(1, 11),
    st.integers(2, 3),
    st.booleans(),
    st.integers(0, 2**32),
)
@example("random", 3, 6, 3, True, 12)  # deadlocks unless receives of both lanes are started before one is awaited
@example("random", 2, 6, 2, False, 2)  # deadlocks when a stage waits for sends that may not have been received
@settings(deadline=None, max_examples=60)
def test_order_alone_matches_messages(
    name: str, stages: int, micros: int, chunks: int, shared: bool, seed: int
) -> None:
    """On a transport that ignores tags and blocks like NCCL, nothing is swapped and nothing deadlocks."""
    if name == "random":
        micros = min(micros, 6)
        schedule = random_schedule(seed, stages, micros, chunks)
    else:
        chunks = chunks if name == "interleaved" else 1
        schedule = sch.build(name, stages, micros, chunks)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _run_ordered(monkeypatch, schedule, micros, chunks, shared)


def test_sent_tensors_are_let_go_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """1F1B keeps as many sent activations as micro-batches in flight, plus a gradient or two, however many run."""
    network = _run_ordered(monkeypatch, sch.one_f_one_b(4, 20), 20, 1, shared=False)
    assert all(held <= 4 - stage + 2 for stage, held in enumerate(network.most_sends_held))


def test_a_stopwatch_notes_every_action_of_one_step() -> None:
    schedule = sch.interleaved(1, 3, 2)
    stopwatch = Stopwatch(Device(torch.device("cpu"), "gloo"))
    stage = Stage(0, schedule, 2, (None, None), stopwatch)
    stage.run(3)
    stopwatch.start()
    stage.run(3)
    noted = stopwatch.stop()
    stage.run(3)
    assert stopwatch.stop() == []
    assert [timed.action for timed in noted] == schedule[0]
    times = [0.0, *(moment for timed in noted for moment in (timed.start, timed.end))]
    assert times == sorted(times)
    assert times[-1] < 60


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="uses 1 chunks, but stage 0 has 2"):
        Stage(0, sch.gpipe(1, 2), 2, (None, None))
    with pytest.raises(ValueError, match="for 2 micro-batches, not 3"):
        Stage(0, sch.gpipe(1, 2), 1, (None, None)).run(3)
    backward_first = [list(reversed(sch.gpipe(1, 2)[0]))]
    with pytest.raises(ValueError, match="deadlock"):
        Stage(0, backward_first, 1, (None, None))


def _fake_stage(stage: int, stages: int, micros: int, chunks: int) -> list[Any]:
    device = torch.device("cuda")
    groups = dist.new_group(list(range(stages))), dist.new_group(list(range(stages)))
    tensor = torch.empty(ROWS, ROWS, dtype=torch.bfloat16, device=device)
    parts = [Toy(c * stages + stage, stages * chunks) for c in range(chunks)]
    for part in parts:
        part.weight = torch.nn.Parameter(torch.empty_like(tensor))
    executor = Executor(
        stage=stage,
        stages=stages,
        chunks=parts,
        schedule=sch.interleaved(stages, micros, chunks),
        activation_group=groups[0],
        gradient_group=groups[1],
        rank_of=lambda stage: stage,
        shape=tensor.shape,
        dtype=torch.bfloat16,
        device=device,
        stopwatch=Stopwatch(Device(device, "fake")),
    )
    losses = executor.run([{"x": tensor, "y": tensor}] * micros, torch.ones((), device=device))
    return [len(losses), [str(part.weight.grad.device) for part in parts if part.weight.grad is not None]]


@pytest.mark.parametrize("stage", [0, 5, 7])
def test_fake_cuda_stage(stage: int) -> None:
    losses = 9 if stage == 7 else 0
    assert run_fake_cuda(_fake_stage, stage, 8, 9, 2, rank=stage, world=8) == [losses, ["cuda:0", "cuda:0"]]
