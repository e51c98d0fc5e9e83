"""Means of squares over both sides of a matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ops.adafactor import means_of_squares
from tests.ops.witness import draw

pytestmark = pytest.mark.usefixtures("each_backend")


@given(
    rows=st.sampled_from([1, 2, 63, 64, 65, 200]), columns=st.sampled_from([1, 7, 16, 100]),
    dtype=st.sampled_from([torch.float32, torch.float64]), scale=st.sampled_from([1e-12, 1.0, 1e12]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_means(rows: int, columns: int, dtype: torch.dtype, scale: float) -> None:
    grad = draw(1, rows, columns, scale=scale).to(dtype)
    square = grad.double().square() + 1e-30
    for ours, truth in zip(means_of_squares(grad), (square.mean(1), square.mean(0)), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), truth, rtol=20 * torch.finfo(dtype).eps, atol=0)


def test_a_transposed_matrix_and_any_number_of_threads(each_backend: str) -> None:
    grad, threads = draw(1, 300, 40).float(), torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(means_of_squares(grad.t()))
    torch.set_num_threads(threads)
    rows, columns = means_of_squares(grad)
    torch.testing.assert_close(results[0], (columns, rows))
    if each_backend == "cpu":
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
