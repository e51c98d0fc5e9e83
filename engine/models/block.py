"""What every arrangement of a transformer block shares; the arrangements are in `engine.models.blocks`."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config import ModelConfig
from engine.mesh import Axis
from engine.models.attention import Attention
from engine.models.mlp import FeedForward
from engine.models.query_layer import QueryAttention
from engine.models.registry import NORMS
from engine.models.traits import Norm, Pass
from engine.ops.dropout import add_dropout, dropout
from engine.parallel.linear import TensorParallel


class Block(nn.Module):
    """[b, s, h] -> [b, s, h] (sequence shards under SP). `recompute`: none | selective | full.

    selective recomputes the attention core in the backward pass (arXiv 2205.05198), full the whole block. An
    arrangement names its norms in NORMS and says in `_body` how they, attention and the feed-forward layer follow.
    """

    NORMS: ClassVar[tuple[str, ...]] = ("norm1", "norm2")

    def __init__(self, layer: int, config: ModelConfig, tp: TensorParallel, kv_axis: Axis, recompute: str) -> None:
        super().__init__()
        name, norm, gain = f"layers.{layer}", NORMS.get(config.norm), self.gain(config)
        self.layer, self.tp, self.dropout = layer, tp, config.hidden_dropout
        self.recompute_all = recompute == "full"
        self.norms = nn.ModuleDict(
            {part: norm(f"{name}.{part}", config.hidden, config.norm_eps, tp) for part in self.NORMS}
        )
        is_query_layer = config.query_layer and layer == config.layers - 1
        attention = QueryAttention if is_query_layer else Attention
        self.attention = attention(f"{name}.attention", layer, config, tp, kv_axis, recompute == "selective", gain)
        self.mlp = FeedForward(f"{name}.mlp", config, tp, gain)

    @classmethod
    def gain(cls, config: ModelConfig) -> float:
        """Return what multiplies the first values of the value, output and feed-forward matrices."""
        return 1.0

    def forward(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        if self.recompute_all and self.training:
            return checkpoint(self._body, x_bsh, ctx, use_reentrant=False, preserve_rng_state=False)
        return self._body(x_bsh, ctx)

    @abstractmethod
    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor: ...

    def _norm(self, part: str) -> Norm:
        return self.norms[part]  # type: ignore[return-value]

    def _drops(self, ctx: Pass) -> bool:
        return self.dropout > 0.0 and ctx.key is not None

    def _add(self, x_bsh: Tensor, branch_bsh: Tensor, ctx: Pass, site: str) -> Tensor:
        """Add a branch, dropped, to the residual stream."""
        if not self._drops(ctx) or ctx.key is None:
            return x_bsh + branch_bsh
        rows_bs = self.tp.local_sequence(ctx.tokens_bs)
        return add_dropout(x_bsh, branch_bsh, self.dropout, ctx.key(self.layer, site), rows_bs, x_bsh.shape[-1])

    def _add_normed(self, x_bsh: Tensor, branch_bsh: Tensor, norm: str, ctx: Pass, site: str) -> tuple[Tensor, Tensor]:
        """Return (norm of the sum, sum) of the residual stream and a branch, dropped; in one pass where none is."""
        if self._drops(ctx):
            x_bsh = self._add(x_bsh, branch_bsh, ctx, site)
            return self._norm(norm)(x_bsh), x_bsh
        return self._norm(norm).add(branch_bsh, x_bsh)


def drop_hidden(x_bsh: Tensor, p: float, ctx: Pass, layer: int, site: str, tp: TensorParallel) -> Tensor:
    """Dropout on hidden states; every layout drops the same elements."""
    if p == 0.0 or ctx.key is None:
        return x_bsh
    return dropout(x_bsh, p, ctx.key(layer, site), tp.local_sequence(ctx.tokens_bs), x_bsh.shape[-1])
