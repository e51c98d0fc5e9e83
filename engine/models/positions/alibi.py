"""ALiBi (arXiv 2108.12409): attention's logits fall with the distance, in each head by a slope of its own."""

from __future__ import annotations

import math
from typing import Any

import torch

from engine.models.heads import Heads
from engine.models.registry import POSITIONS
from engine.models.traits import Pass, Positions, ScoreTerms


@POSITIONS.register("alibi")
class ALiBi(Positions):
    def score_terms(self, name: str, heads: Heads) -> ScoreTerms:
        return _Slopes(self.config.heads, heads)


class _Slopes(ScoreTerms):
    def __init__(self, total: int, heads: Heads) -> None:
        super().__init__()
        self.mine = slopes(total)[heads.q_start : heads.q_start + heads.q]

    def forward(self, ctx: Pass) -> dict[str, Any]:
        return {"slopes_h": ctx.once("alibi", lambda: torch.tensor(self.mine, device=ctx.tokens_bs.device))}


def slopes(heads: int) -> list[float]:
    """Return the slope of every head: 2^(-8i/n) for n heads; what lies between where n is no power of two."""
    whole = 2 ** int(math.log2(heads))
    found = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return found + [2 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
