"""One transformer block: pre-norm attention and feed-forward, each added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config import ModelConfig
from engine.mesh import Axis
from engine.models.attention import Attention
from engine.models.mlp import FeedForward
from engine.models.registry import NORMS
from engine.models.traits import Pass
from engine.ops.dropout import add_dropout, dropout
from engine.parallel.linear import TensorParallel


class Block(nn.Module):
    """[b, s, h] -> [b, s, h] (sequence shards under SP). `recompute`: none | selective | full.

    selective recomputes the attention core in the backward pass (arXiv 2205.05198), full the whole block.
    """

    def __init__(self, layer: int, config: ModelConfig, tp: TensorParallel, kv_axis: Axis, recompute: str) -> None:
        super().__init__()
        name, norm = f"layers.{layer}", NORMS.get(config.norm)
        self.layer, self.tp, self.dropout = layer, tp, config.hidden_dropout
        self.recompute_all = recompute == "full"
        self.norm1 = norm(f"{name}.norm1", config.hidden, config.norm_eps, tp)
        self.attention = Attention(f"{name}.attention", layer, config, tp, kv_axis, recompute == "selective")
        self.norm2 = norm(f"{name}.norm2", config.hidden, config.norm_eps, tp)
        self.mlp = FeedForward(f"{name}.mlp", config, tp)

    def forward(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        if self.recompute_all and self.training:
            return checkpoint(self._body, x_bsh, ctx, use_reentrant=False, preserve_rng_state=False)
        return self._body(x_bsh, ctx)

    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        branch_bsh = self.attention(self.norm1(x_bsh), ctx)
        if self._drops(ctx):
            x_bsh = self._add(x_bsh, branch_bsh, ctx, "attention_out")
            normed_bsh = self.norm2(x_bsh)
        else:
            normed_bsh, x_bsh = self.norm2.add(branch_bsh, x_bsh)
        return self._add(x_bsh, self.mlp(normed_bsh), ctx, "mlp_out")

    def _drops(self, ctx: Pass) -> bool:
        return self.dropout > 0.0 and ctx.key is not None

    def _add(self, x_bsh: Tensor, branch_bsh: Tensor, ctx: Pass, site: str) -> Tensor:
        """Add a branch, dropped, to the residual stream."""
        if not self._drops(ctx) or ctx.key is None:
            return x_bsh + branch_bsh
        rows_bs = self.tp.local_sequence(ctx.tokens_bs)
        return add_dropout(x_bsh, branch_bsh, self.dropout, ctx.key(self.layer, site), rows_bs, x_bsh.shape[-1])


def drop_hidden(x_bsh: Tensor, p: float, ctx: Pass, layer: int, site: str, tp: TensorParallel) -> Tensor:
    """Dropout on hidden states; every layout drops the same elements."""
    if p == 0.0 or ctx.key is None:
        return x_bsh
    return dropout(x_bsh, p, ctx.key(layer, site), tp.local_sequence(ctx.tokens_bs), x_bsh.shape[-1])
