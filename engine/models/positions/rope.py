"""Rotary position embedding (arXiv 2104.09864), of all or some features of a head, plain or stretched (Llama 3.1)."""

from __future__ import annotations

from torch import Tensor

from engine.config import ModelConfig
from engine.models.registry import POSITIONS
from engine.models.traits import Pass, Positions
from engine.ops.rope import Stretch, rope_, rope_tables
from engine.parallel.linear import TensorParallel


@POSITIONS.register("rope")
class RotaryPositions(Positions):
    """Rotates q and k by angles computed in float32, as every published checkpoint was trained with."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, *, with_table: bool) -> None:
        super().__init__(config, tp, with_table=with_table)
        self.head_dim = config.head_dim or config.hidden // config.heads
        self.turned = round(self.head_dim * config.rope_fraction)  # features of a head
        self.theta, self.interleaved = config.rope_theta, config.rope_interleaved
        self.stretch = Stretch(
            config.rope_scaling, config.rope_scaling_low, config.rope_scaling_high, config.rope_scaling_context
        )

    def rotate(self, qkv_bsf: Tensor, turned: int, ctx: Pass) -> Tensor:
        cos, sin = ctx.once("rope", lambda: rope_tables(ctx.positions, self.turned, self.theta, self.stretch))
        return rope_(qkv_bsf, cos, sin, turned, self.interleaved, head_dim=self.head_dim)
