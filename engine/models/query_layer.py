"""PanGu-alpha's query layer (arXiv 2104.12369): on top, attention whose queries come from positions alone.

Query n asks for the token after n: it is a row of a second table of positions, and keys and values are made of hidden
states as ever. The table belongs to the last layer; queries are not normed before their projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.models.attention import Attention
from engine.models.inits import table
from engine.models.traits import Pass
from engine.ops.embedding import lookup
from engine.parallel.sharding import EMBEDDING, parameter, whole


class QueryAttention(Attention):
    """As `Attention`, with a table [max_positions, h], replicated over tp."""

    def _build_inputs(self, name: str, config: ModelConfig, gain: float) -> None:
        tp = self.tp
        self.q, self.kv = (self._inputs(parts, name, config, gain) for parts in ("q", "kv"))
        shape, partial = (config.max_positions, config.hidden), tp.sequence_parallel
        piece = whole("query_positions.weight", shape, table(config), tp.axis, partial_grad=partial, kind=EMBEDDING)
        self.queries = parameter([piece], tp.dtype, tp.device)

    def _project(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        positions_bs = self.tp.local_sequence(ctx.positions.expand(ctx.tokens_bs.shape))
        return torch.cat([self.q(lookup(self.queries, positions_bs)), self.kv(x_bsh)], dim=-1)
