"""Norms before and after attention and feed-forward layer (CogView, arXiv 2105.13290; Grok-1)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from engine.models.block import Block
from engine.models.registry import BLOCKS
from engine.models.traits import Pass


@BLOCKS.register("sandwich")
class Sandwich(Block):
    NORMS: ClassVar[tuple[str, ...]] = ("norm1", "norm1_out", "norm2", "norm2_out")

    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        branch_bsh = self._norm("norm1_out")(self.attention(self._norm("norm1")(x_bsh), ctx))
        normed_bsh, x_bsh = self._add_normed(x_bsh, branch_bsh, "norm2", ctx, "attention_out")
        return self._add(x_bsh, self._norm("norm2_out")(self.mlp(normed_bsh)), ctx, "mlp_out")
