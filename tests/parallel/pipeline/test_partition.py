"""Splits of layers: optimal against brute force, explicit sizes, errors in one line."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.parallel.pipeline.partition import split_layers

COSTS = st.integers(0, 24).map(lambda eighths: eighths / 8)  # exact in binary and in thousandths


def _costs(sizes: tuple[int, ...], embedding: float, head: float) -> list[float]:
    costs = [float(size) for size in sizes]
    costs[0] += embedding
    costs[-1] += head
    return costs


@given(st.integers(1, 10), st.integers(1, 6), COSTS, COSTS)
def test_best_of_all_splits(layers: int, parts: int, embedding: float, head: float) -> None:
    parts = min(parts, layers)
    split = split_layers(layers, parts, None, embedding, head)
    assert [start for start, _ in split] == [0, *(stop for _, stop in split[:-1])]
    assert split[-1][1] == layers

    def badness(sizes: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
        costs = _costs(sizes, embedding, head)
        return max(costs), sum(cost * cost for cost in costs), sizes

    every = (s for s in itertools.product(range(1, layers + 1), repeat=parts) if sum(s) == layers)
    assert tuple(stop - start for start, stop in split) == min(every, key=badness)


def test_known_splits() -> None:
    assert split_layers(8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert split_layers(10, 4) == [(0, 2), (2, 4), (4, 7), (7, 10)]
    assert split_layers(30, 4, None, 1.0, 1.0) == [(0, 7), (7, 15), (15, 23), (23, 30)]
    assert split_layers(5, 2, [1, 4]) == [(0, 1), (1, 5)]
    assert len(split_layers(128, 64, None, 0.3, 1.7)) == 64


@pytest.mark.parametrize(
    ("layers", "parts", "sizes", "words"),
    [
        (3, 4, None, "parallel.pp.*model.layers=3"),
        (6, 2, [2, 2], r"stage_layers=\[2,2\] sums to 4, but model.layers=6"),
        (6, 2, [2, 2, 2], "3 entries; write 2"),
        (6, 2, [6, 0], "leaves a part empty"),
    ],
)
def test_one_line_errors(layers: int, parts: int, sizes: list[int] | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        split_layers(layers, parts, sizes)
    assert "\n" not in str(caught.value)
