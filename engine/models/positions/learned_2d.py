"""GLM's 2-D positions (arXiv 2103.10360): one table for places in the text, a second for places inside a blank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.config import ModelConfig
from engine.models.inits import table
from engine.models.positions.learned import LearnedPositions
from engine.models.registry import POSITIONS
from engine.models.traits import Pass
from engine.ops.embedding import lookup
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import EMBEDDING, parameter, whole


@POSITIONS.register("learned_2d")
class LearnedPositions2D(LearnedPositions):
    """Two tables [max_positions, h]; a text without blanks is at place 0 of none."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, *, with_table: bool) -> None:
        super().__init__(config, tp, with_table=with_table)
        self.blocks: nn.Parameter | None = None
        if with_table:
            shape = (config.max_positions, config.hidden)
            piece = whole(
                "block_positions.weight",
                shape,
                table(config),
                tp.axis,
                partial_grad=tp.sequence_parallel,
                kind=EMBEDDING,
            )
            self.blocks = parameter([piece], tp.dtype, tp.device)

    def embed(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        assert self.blocks is not None, "only the first stage embeds"
        blocks_bs = torch.zeros_like(ctx.tokens_bs) if ctx.blocks is None else ctx.blocks
        return super().embed(x_bsh, ctx) + lookup(self.blocks, self.tp.local_sequence(blocks_bs))
