"""Learned absolute positions, added to the token embeddings (GPT-2)."""

from __future__ import annotations

from torch import Tensor, nn

from engine.config import ModelConfig
from engine.models.inits import table
from engine.models.registry import POSITIONS
from engine.models.traits import Pass, Positions
from engine.ops.embedding import lookup
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import EMBEDDING, parameter, whole


@POSITIONS.register("learned")
class LearnedPositions(Positions):
    """A table [max_positions, h], replicated over tp; only the stage that embeds tokens holds it."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, *, with_table: bool) -> None:
        super().__init__(config, tp, with_table=with_table)
        self.weight: nn.Parameter | None = None
        if with_table:
            shape, init = (config.max_positions, config.hidden), table(config)
            piece = whole("positions.weight", shape, init, tp.axis, partial_grad=tp.sequence_parallel, kind=EMBEDDING)
            self.weight = parameter([piece], tp.dtype, tp.device)

    def embed(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        assert self.weight is not None, "only the first stage embeds"
        positions_bs = ctx.positions.expand(ctx.tokens_bs.shape)
        return x_bsh + lookup(self.weight, self.tp.local_sequence(positions_bs))
