"""UL2: seven denoisers, evenly mixed, each behind its mode token; S cuts off a quarter in the mean."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config import DataConfig, ObjectiveConfig
from engine.objectives.choose import make_objective
from engine.objectives.draws import Draws
from engine.objectives.packed import Packed
from engine.objectives.ul2 import MixtureOfDenoisers, Sequential
from tests.objectives.test_settings import chosen
from tests.objectives.words import EOD, Words, fill, halves, text_of


def test_the_end_of_a_text_by_hand() -> None:
    given, written = halves(Sequential(0.25, sentinel=5, eod=EOD, mode=9)(np.array([101, 102]), Draws(0, 0)))
    assert (given, written) == ([9, 101, 5], [5, 102, EOD])


@pytest.mark.parametrize(("noise", "length"), [(0.25, 40), (0.5, 41)])
def test_s_cuts_off_its_share_in_the_mean(noise: float, length: int) -> None:
    denoiser, ends = Sequential(noise, sentinel=5, eod=EOD, mode=9), []
    for index in range(1000):
        text = text_of(length, index)
        piece = denoiser(text, Draws(0, index))
        given, written = halves(piece)
        assert given[0] == 9
        assert fill(given[1:], written[:-1], [5]) == text.tolist()
        assert len(piece) == denoiser.places(length)
        ends.append(len(written) - 2)
    assert abs(np.mean(ends) - noise * length) < 5 * np.std(ends) / np.sqrt(1000)
    assert min(ends) == 1
    assert max(ends) == min(round(2 * noise * length) - 1, length - 1)


# mode, and of X which one by its number of spans in a text of 377 tokens: shares of the samples as published
@pytest.mark.parametrize(
    ("choice", "shares"),
    [
        ("ul2", {("R", 19): 1 / 7, ("R", 7): 1 / 7, ("S", 1): 1 / 7, ("X", 63): 1 / 7, ("X", 24): 1 / 7,
                 ("X", 1): 1 / 7, ("X", 3): 1 / 7}),
        ("u-palm", {("S", 1): 0.5, ("R", 19): 0.25, ("X", 63): 0.125, ("X", 2): 0.125}),
    ],
)  # fmt: skip
def test_the_mixture_is_the_published_one(choice: str, shares: dict[tuple[str, int], float]) -> None:
    words = Words()
    objective = make_objective(chosen(choice), DataConfig(seq_len=504), 1, words)
    assert isinstance(objective, Packed)
    assert objective.stride == 377
    modes = {words.ids[f"[{mode}]"]: mode for mode in "RSX"}
    sentinels = [words.ids[f"<extra_id_{n}>"] for n in range(63)]
    assert "<extra_id_63>" not in words.ids, "as many as the denoiser with the most spans takes"
    seen = dict.fromkeys(shares, 0)
    for index in range(700):
        text = text_of(377, index)
        (piece,) = objective.pieces(text, np.array([], dtype=np.int64), index)
        given, written = halves(piece)
        assert fill(given[1:], written[:-1], sentinels) == text.tolist()
        seen[modes[given[0]], sum(token in sentinels for token in given)] += 1
    assert seen.keys() == shares.keys()
    for key, share in shares.items():
        assert abs(seen[key] / 700 - share) < 5 * np.sqrt(share * (1 - share) / 700), key


def test_weights_need_not_be_given() -> None:
    config = ObjectiveConfig(name="ul2", denoisers=[{"mode": "S", "noise": 0.25}])
    objective = make_objective(config, DataConfig(seq_len=32), 1, Words())
    assert isinstance(objective, Packed)
    assert isinstance(objective.noise, MixtureOfDenoisers)
    assert list(objective.noise.weights) == [1.0]
