"""States in host memory: what is kept comes back, within the budget."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.memory import HostStates


@given(room=st.integers(1, 4), spare=st.integers(0, 3), steps=st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_the_newest_states_within_the_budget_come_back(room: int, spare: int, steps: list[int]) -> None:
    """The budget is of bytes, or of states where those are fewer."""
    tensors = [torch.zeros(3), torch.zeros((), dtype=torch.float64)]
    states = HostStates(tensors, (room + spare) * 20 + 7, most=room if spare else 8)
    assert (states.bytes_each, states.room) == (20, room)
    step, kept = 0, []
    for gap in steps:
        step += gap
        for tensor in tensors:
            tensor.fill_(step)
        states.keep(step, {"step": step})
        kept.append(step)
    assert [state.step for state in states.kept] == kept[-room:]
    for wanted in kept[-room:]:
        state = states.find(wanted)
        assert state is not None
        states.restore(state)
        assert [tensor.flatten()[0].item() for tensor in tensors] == [wanted, wanted]
        assert state.meta == {"step": wanted}


def test_going_back_drops_what_came_after_and_uses_its_memory_again() -> None:
    tensor = torch.zeros(4)
    states = HostStates([tensor], 48, most=8)
    for step in (1, 2, 3):
        states.keep(step, {})
    buffers = {state.values[0].data_ptr() for state in states.kept}
    states.forget(after=1)
    assert states.find(2) is None
    for step in (2, 3):
        states.keep(step, {})
    states.keep(3, {})  # once more: no second state of a step
    assert [state.step for state in states.kept] == [1, 2, 3]
    assert {state.values[0].data_ptr() for state in states.kept} == buffers


def test_a_budget_too_small_for_one_state_keeps_none() -> None:
    states = HostStates([torch.zeros(100)], 399, most=8)
    states.keep(1, {})
    assert (states.room, states.kept) == (0, [])
