"""Attention and feed-forward layer side by side, both of the same input: one norm for both (GPT-J; PaLM, arXiv
2204.02311) or one each (GPT-NeoX, arXiv 2204.06745).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from engine.models.block import Block
from engine.models.registry import BLOCKS
from engine.models.traits import Pass


@BLOCKS.register("parallel")
class Parallel(Block):
    NORMS: ClassVar[tuple[str, ...]] = ("norm1",)

    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        normed_bsh = self._norm("norm1")(x_bsh)
        return self._sum(x_bsh, self.attention(normed_bsh, ctx), self.mlp(normed_bsh), ctx)

    def _sum(self, x_bsh: Tensor, attention_bsh: Tensor, mlp_bsh: Tensor, ctx: Pass) -> Tensor:
        return self._add(self._add(x_bsh, attention_bsh, ctx, "attention_out"), mlp_bsh, ctx, "mlp_out")


@BLOCKS.register("parallel_two_norms")
class ParallelTwoNorms(Parallel):
    NORMS: ClassVar[tuple[str, ...]] = ("norm1", "norm2")

    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        attention_bsh = self.attention(self._norm("norm1")(x_bsh), ctx)
        return self._sum(x_bsh, attention_bsh, self.mlp(self._norm("norm2")(x_bsh)), ctx)
