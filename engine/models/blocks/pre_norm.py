"""Norms before attention and feed-forward layer, outside of the residual stream (GPT-2, Llama; arXiv 2002.04745)."""

from __future__ import annotations

from torch import Tensor

from engine.models.block import Block
from engine.models.registry import BLOCKS
from engine.models.traits import Pass


@BLOCKS.register("pre_norm")
class PreNorm(Block):
    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        branch_bsh = self.attention(self._norm("norm1")(x_bsh), ctx)
        normed_bsh, x_bsh = self._add_normed(x_bsh, branch_bsh, "norm2", ctx, "attention_out")
        return self._add(x_bsh, self.mlp(normed_bsh), ctx, "mlp_out")
