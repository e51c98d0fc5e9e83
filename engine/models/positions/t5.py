"""T5's relative positions (arXiv 1910.10683): a learned bias of the logits for each head and bucket of distances.

All layers share one table, so every pipeline stage holds a copy. Keys ahead of a query count as distance 0, as in T5's
decoder; distances from half of the buckets on share buckets that grow logarithmically up to `relative_distance`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.mesh import Axis
from engine.models.heads import Heads
from engine.models.inits import table
from engine.models.registry import POSITIONS
from engine.models.traits import Pass, Positions, ScoreTerms, SharedPositions
from engine.ops.gradient import as_input
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import EMBEDDING, parameter, rows

_BIAS = "t5 bias"


@POSITIONS.register("t5")
class BucketPositions(Positions):
    LEARNS_SCORES = True

    def score_terms(self, name: str, heads: Heads) -> ScoreTerms:
        return _Shared()

    @classmethod
    def shared(cls, config: ModelConfig, tp: TensorParallel, pp: Axis) -> SharedPositions:
        return _Buckets(config, tp, pp)


class _Shared(ScoreTerms):
    def forward(self, ctx: Pass) -> dict[str, Any]:
        return {"bias_hss": ctx.memo[_BIAS]}


class _Buckets(SharedPositions):
    """My heads' rows of the table [heads, buckets]."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, pp: Axis) -> None:
        super().__init__()
        self.buckets, self.distance = config.relative_buckets, config.relative_distance
        mine = config.heads // tp.axis.size
        start, shape = tp.axis.rank * mine, (config.heads, self.buckets)
        piece = rows("relative_bias.weight", shape, table(config), start, start + mine, EMBEDDING)
        self.weight = parameter([piece.shared(pp)], tp.dtype, tp.device)

    def forward(self, ctx: Pass) -> None:
        places_s = torch.arange(ctx.tokens_bs.shape[1], device=ctx.tokens_bs.device)
        bucket_s = buckets_of(places_s, self.buckets, self.distance)
        bias_hs = as_input(self.weight).index_select(1, bucket_s)  # of each distance
        ctx.memo[_BIAS] = bias_hs[:, (places_s[:, None] - places_s).clamp(min=0)]


def buckets_of(distance: Tensor, buckets: int, longest: int) -> Tensor:
    """Return the bucket of each distance, int64."""
    exact = buckets // 2
    grown = torch.log(distance.clamp(min=1).float() / exact) / math.log(longest / exact) * (buckets - exact)
    return torch.where(distance < exact, distance, (exact + grown.long()).clamp(max=buckets - 1))
