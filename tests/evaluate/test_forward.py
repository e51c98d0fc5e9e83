"""Losses and logits token by token, on every layout those of one process that sees each window alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.config import Config
from engine.data.samples import Sample
from engine.evaluate.forward import Forward
from engine.generate import logits
from engine.models.transformer import Chunk, plain_chunk
from engine.ops import backend
from engine.parallel.sharding import pieces_of
from tests.layouts import GPT, LLAMA, VOCAB, layout_stepper, make_config
from tests.ranks import run_ranks

LENGTHS = (17, 2, 9, 17, 13, 5, 17, 3, 16, 17, 4)  # tokens; no multiple of any batch

LAYOUTS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of four ranks
    ({"dp": 4}, GPT),
    ({"tp": 2, "dp": 2, "sequence_parallel": True}, LLAMA),
    ({"pp": 2, "dp": 2, "schedule": "interleaved", "virtual_stages": 2}, GPT),
    ({"tp": 2, "pp": 2}, LLAMA),
]


def windows() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCAB, length) for length in LENGTHS]


def whole_model(config: Config) -> Chunk:
    """Return the model in one process, with the weights that every layout draws."""
    model = plain_chunk(config.model, VOCAB, torch.float64, torch.device("cpu")).eval()
    with torch.no_grad():
        for weight in model.parameters():
            draws = [piece.draw(config.train.seed, torch.float64, torch.device("cpu")) for piece in pieces_of(weight)]
            weight.copy_(torch.cat(draws))
    return model


def score_here(rank: int, world: int) -> list[tuple[list[Any], list[Any]]]:
    found = []
    for parallel, model in LAYOUTS:  # in one start of the ranks, which takes longer than all the rest
        config = make_config(parallel=parallel, model=model)
        backend.select(config.ops.backend)
        stepper = layout_stepper(config)
        forward = Forward(config, stepper.chunks, stepper.tp, stepper.mesh)
        samples = [Sample(window, np.zeros(0, np.int64)) for window in windows()]
        scores = [(score.losses, score.is_top) for score in forward.score(samples)]
        rows = forward.next_logits([window.tolist()[:16] for window in windows()])
        found.append((scores, [row.numpy() for row in rows]))
    return found


def test_every_layout_scores_as_one_process_that_sees_each_window_alone() -> None:
    for results in run_ranks(4, score_here):  # the same on every rank
        for (parallel, model), (scores, rows) in zip(LAYOUTS, results, strict=True):
            plain = whole_model(make_config(parallel=parallel, model=model))
            for window, score, row in zip(windows(), scores, rows, strict=True):
                check(plain, torch.from_numpy(window), score, row)


def check(plain: Chunk, tokens: Tensor, score: tuple[np.ndarray, np.ndarray], row: np.ndarray) -> None:
    with torch.no_grad():
        wanted = logits(plain, tokens[None, :-1])[0]
        following = logits(plain, tokens[None, :16])[0, -1]
    per_token = torch.nn.functional.cross_entropy(wanted, tokens[1:], reduction="none")
    np.testing.assert_allclose(score[0], per_token.numpy(), rtol=1e-10)
    assert score[1].tolist() == (wanted.argmax(-1) == tokens[1:]).tolist()
    np.testing.assert_allclose(row, following.numpy(), rtol=1e-10, atol=1e-12)
