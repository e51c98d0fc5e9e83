"""Transformer-XL's relative positions (arXiv 1901.02860), as in Gopher and Chinchilla.

Each layer projects sinusoids of the distance to keys of their own, which queries meet beside those of the tokens, and
adds a learned bias to the queries for either. There is no recurrence over segments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from engine.config import ModelConfig
from engine.models.heads import Heads
from engine.models.inits import matrix
from engine.models.positions.sinusoidal import sinusoids
from engine.models.registry import POSITIONS
from engine.models.traits import Pass, Positions, ScoreTerms
from engine.ops.attention import Relative
from engine.ops.gradient import as_input
from engine.parallel.linear import ColumnLinear, TensorParallel
from engine.parallel.sharding import VECTOR, Init, parameter, rows


@POSITIONS.register("transformer_xl")
class TransformerXL(Positions):
    LEARNS_SCORES = True

    def score_terms(self, name: str, heads: Heads) -> ScoreTerms:
        return _Distances(name, self.config, heads, self.tp)


class _Distances(ScoreTerms):
    """My heads' rows of the projection [heads * d, h], and of the two biases [heads * d]."""

    def __init__(self, name: str, config: ModelConfig, heads: Heads, tp: TensorParallel) -> None:
        super().__init__()
        self.hidden, self.dim = config.hidden, heads.dim
        height = config.heads * heads.dim
        mine = heads.q_start * heads.dim, (heads.q_start + heads.q) * heads.dim
        init = matrix(config, config.hidden, height)
        # Every rank has all distances: there is no sequence to gather.
        self.project = ColumnLinear(
            [rows(f"{name}.distance.weight", (height, config.hidden), init, *mine)], [],
            replace(tp, sequence_parallel=False),
        )  # fmt: skip

        def bias(part: str) -> nn.Parameter:
            return parameter([rows(f"{name}.{part}.bias", (height,), Init(), *mine, VECTOR)], tp.dtype, tp.device)

        self.content, self.place = bias("content"), bias("place")

    def forward(self, ctx: Pass) -> dict[str, Any]:
        waves_1sh = ctx.once(
            "distances",
            lambda: sinusoids(torch.arange(ctx.tokens_bs.shape[1], device=ctx.tokens_bs.device), self.hidden),
        )[None]
        r_shd = self.project(waves_1sh.to(self.content.dtype))[0].unflatten(-1, (-1, self.dim))
        u_hd, v_hd = (as_input(bias).view(-1, self.dim) for bias in (self.content, self.place))
        return {"relative": Relative(u_hd, v_hd, r_shd)}
