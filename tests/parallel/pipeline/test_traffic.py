"""Messages: one per edge of the dependency graph, in an order that respects cause and effect."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.parallel.pipeline import schedule as sch
from engine.parallel.pipeline.schedule import Kind
from engine.parallel.pipeline.traffic import messages
from tests.parallel.pipeline.toy import random_schedule


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
@settings(deadline=None)
def test_messages(stages: int, micros: int, chunks: int, seed: int) -> None:
    schedule = random_schedule(seed, stages, micros, chunks)
    found = messages(schedule, chunks)
    assert len(found) == 2 * micros * (stages * chunks - 1)
    assert [message.order for message in found] == list(range(len(found)))
    assert max(Counter((m.sender, m.receiver, m.tag) for m in found).values(), default=1) == 1
    for message in found:
        step = 1 if message.kind is Kind.F else -1
        virtual = sch.virtual_stage(stages, message.sender, message.produced_by.chunk)
        assert virtual + step == sch.virtual_stage(stages, message.receiver, message.used_by.chunk)
        assert message.produced_by.micro == message.used_by.micro
        assert schedule[message.sender][message.produced_at] == message.produced_by
        assert schedule[message.receiver][message.used_at] == message.used_by
    for early in found:  # what a stage has used to make a message precedes that message
        for late in found:
            if early.receiver == late.sender and early.used_at <= late.produced_at:
                assert early.order < late.order


@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(2, 8), st.integers(1, 16))
@settings(deadline=None)
def test_receives_overlap_compute(name: str, stages: int, micros: int) -> None:
    """A stage can start every receive before it computes what it sends at the moment the message arrives."""
    schedule = sch.build(name, stages, micros)
    spans = sch.simulate(schedule, 1, lambda stage, action: 1.0 if action.kind is Kind.F else 2.0)
    found = messages(schedule, 1)
    for stage in range(stages):
        for kind in Kind:
            lane = [m for m in found if m.kind is kind and stage in (m.sender, m.receiver)]
            for before, after in itertools.pairwise(lane):
                if before.sender == after.receiver == stage and after.used_at == before.produced_at + 1:
                    assert spans[after.sender][after.produced_at][1] > spans[stage][before.produced_at][1]
