"""Schedules: complete, executable, with the memory and the bubble that theory gives them."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.parallel.pipeline import schedule as sch
from engine.parallel.pipeline.schedule import Action, Kind, Schedule

STAGES, MICROS, CHUNKS = st.integers(1, 8), st.integers(1, 32), st.integers(1, 4)
FORWARD, BACKWARD = 1.0, 2.0  # unit times of one chunk


def _spans(schedule: Schedule, chunks: int) -> list[list[sch.Span]]:
    return sch.simulate(schedule, chunks, lambda stage, action: FORWARD if action.kind is Kind.F else BACKWARD)


def _makespan(schedule: Schedule, chunks: int) -> float:
    return max(spans[-1][1] for spans in _spans(schedule, chunks))


def _assert_sound(schedule: Schedule, stages: int, micros: int, chunks: int, kinds: str) -> None:
    """Completeness and dependencies, judged without the module's own `check`, by the times of the simulation."""
    wanted = sorted(Action(Kind(k), m, c) for k in kinds for m in range(micros) for c in range(chunks))
    end: dict[tuple[Kind, int, int], sch.Span] = {}
    for stage, (actions, spans) in enumerate(zip(schedule, _spans(schedule, chunks), strict=True)):
        assert sorted(actions) == wanted
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        end |= {(a.kind, a.micro, a.chunk * stages + stage): span for a, span in zip(actions, spans, strict=True)}
    for (kind, micro, virtual), (start, _) in end.items():
        needs = [(kind, micro, virtual + (-1 if kind is Kind.F else 1))]
        needs += [(Kind.F, micro, virtual)] if kind is Kind.B else []
        assert all(end[need][1] <= start for need in needs if need in end)
    sch.check(schedule, chunks)


@given(STAGES, MICROS)
def test_gpipe(stages: int, micros: int) -> None:
    schedule = sch.gpipe(stages, micros)
    _assert_sound(schedule, stages, micros, 1, "FB")
    assert sch.peak_in_flight(schedule) == [micros] * stages
    assert _makespan(schedule, 1) == (micros + stages - 1) * (FORWARD + BACKWARD)


@given(STAGES, MICROS)
def test_1f1b(stages: int, micros: int) -> None:
    schedule = sch.one_f_one_b(stages, micros)
    _assert_sound(schedule, stages, micros, 1, "FB")
    assert sch.peak_in_flight(schedule) == [min(micros, stages - stage) for stage in range(stages)]
    assert _makespan(schedule, 1) == (micros + stages - 1) * (FORWARD + BACKWARD)


@given(STAGES, MICROS, CHUNKS)
@settings(deadline=None)
def test_interleaved(stages: int, micros: int, chunks: int) -> None:
    schedule = sch.interleaved(stages, micros, chunks)
    _assert_sound(schedule, stages, micros, chunks, "FB")
    # Megatron's warm-up with groups of `stages`; ours are as long as an even cut of `micros` makes them.
    count = max(1, micros // stages)
    group = -(-micros // count)
    warmup = [min(micros * chunks, 2 * (stages - stage - 1) + (chunks - 1) * group) for stage in range(stages)]
    assert sch.peak_in_flight(schedule) == [min(micros * chunks, w + 1) for w in warmup]
    assert group == stages or micros % stages  # Megatron's own numbers whenever Megatron accepts them
    ideal = (micros * chunks + stages - 1) * (FORWARD + BACKWARD)
    if micros >= stages:
        assert _makespan(schedule, chunks) == ideal
    else:  # a micro-batch must pass all virtual stages there and back, and the last one waits for the others
        assert _makespan(schedule, chunks) >= ideal


@given(STAGES, MICROS, CHUNKS)
@settings(deadline=None)
def test_forward_only(stages: int, micros: int, chunks: int) -> None:
    schedule = sch.forward_only(stages, micros, chunks)
    _assert_sound(schedule, stages, micros, chunks, "F")
    if micros >= stages:
        assert _makespan(schedule, chunks) == (micros * chunks + stages - 1) * FORWARD


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), STAGES, MICROS, st.integers(2, 4))
@settings(deadline=None)
def test_backward_in_micro_batch_order(name: str, stages: int, micros: int, chunks: int) -> None:
    """Gradients are summed in one order, so they are bitwise the same under every schedule."""
    chunks = chunks if name == "interleaved" else 1
    for actions in sch.build(name, stages, micros, chunks):
        for chunk in range(chunks):
            order = [a.micro for a in actions if a.kind is Kind.B and a.chunk == chunk]
            assert order == list(range(micros))


def test_interleaved_as_published() -> None:
    """Figure 4 of Narayanan et al. 2021: 4 stages, 2 chunks, 8 micro-batches; the first stage's warm-up."""
    actions = sch.interleaved(4, 8, 2)[0]
    assert " ".join(map(str, actions[:13])) == "F0.0 F1.0 F2.0 F3.0 F0.1 F1.1 F2.1 F3.1 F4.0 F5.0 F6.0 B0.1 F7.0"


def test_check_finds_faults() -> None:
    good = sch.one_f_one_b(2, 3)
    sch.check(good, 1)
    with pytest.raises(ValueError, match=r"stage 1 runs F0\.0 more than once"):
        sch.check([good[0], [*good[1], good[1][0]]], 1)
    with pytest.raises(ValueError, match=r"stage 1 misses or invents B2\.0"):
        sch.check([good[0], good[1][:-1]], 1)
    with pytest.raises(ValueError, match=r"deadlock: stage 0 waits at B0\.0, stage 1 waits at B2\.0"):
        sch.check([good[0], good[1][::-1]], 1)
    swapped = [[Action(Kind.B, 0, 0), Action(Kind.F, 0, 0)]]
    with pytest.raises(ValueError, match="deadlock"):
        sch.check(swapped, 1)


def test_simulated_transfer_delays_the_receiver() -> None:
    spans = sch.simulate(sch.one_f_one_b(2, 1), 1, lambda stage, action: 1.0, transfer=0.5)
    assert spans == [[(0.0, 1.0), (4.0, 5.0)], [(1.5, 2.5), (2.5, 3.5)]]


@pytest.mark.parametrize(
    ("name", "chunks", "words"),
    [
        ("1f1", 1, "Did you mean '1f1b'"),
        ("1f1b", 2, "parallel.virtual_stages=2 needs parallel.schedule=interleaved"),
        ("interleaved", 1, "virtual_stages of 2 or more"),
    ],
)
def test_build_refuses(name: str, chunks: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        sch.build(name, 2, 4, chunks)
    assert "\n" not in str(caught.value)
