"""Rotary position embedding (arXiv 2104.09864), half-split pairing as in Llama."""

from __future__ import annotations

from torch import Tensor, nn

from engine.config import ModelConfig
from engine.models.registry import POSITIONS
from engine.models.traits import Pass
from engine.ops.rope import rope_, rope_tables
from engine.parallel.linear import TensorParallel


@POSITIONS.register("rope")
class RotaryPositions(nn.Module):
    """Rotates q and k by angles computed in float32, as every published checkpoint was trained with."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, *, with_table: bool) -> None:
        super().__init__()
        self.dim = config.head_dim or config.hidden // config.heads
        self.theta = config.rope_theta

    def embed(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        return x_bsh

    def rotate(self, qkv_bsf: Tensor, turned: int, ctx: Pass) -> Tensor:
        cos, sin = ctx.once("rope", lambda: rope_tables(ctx.positions, self.dim, self.theta))
        return rope_(qkv_bsf, cos, sin, turned, head_dim=self.dim)
