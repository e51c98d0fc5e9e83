"""Causal self-attention with grouped key/value heads (arXiv 2305.13245), its heads split over tp.

q, k and v are one column-parallel product. When there are fewer kv heads than tp ranks, neighbouring ranks hold
the same kv head; each sees only its own queries, so that head's gradient is summed over those neighbours.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config import ModelConfig
from engine.mesh import Axis
from engine.models.heads import Heads, qkv_pieces
from engine.models.inits import output
from engine.models.registry import NORMS, POSITIONS
from engine.models.traits import Pass
from engine.ops.attention import attention, dropped_attention
from engine.parallel.linear import ColumnLinear, RowLinear, TensorParallel
from engine.parallel.sharding import Init, columns, whole


class Attention(nn.Module):
    """[b, s, h] -> [b, s, h] (sequence shards under SP).

    `gain` multiplies the standard deviation of the value and output matrices at the start.
    """

    def __init__(
        self,
        name: str,
        layer: int,
        config: ModelConfig,
        tp: TensorParallel,
        kv_axis: Axis,
        recompute: bool,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.layer, self.recompute = layer, recompute
        self.dropout, self.heads_total = config.attention_dropout, config.heads
        self.heads = heads = Heads.of(config, tp.axis, kv_axis)
        self.positions = POSITIONS.get(config.positions)(config, tp, with_table=False)
        self.qkv = ColumnLinear(
            qkv_pieces(f"{name}.{{}}.weight", config, heads, gain),
            qkv_pieces(f"{name}.{{}}.bias", config, heads) if config.attention_bias else [],
            tp,
        )
        # Each rank norms its own heads, of a shared kv head for its own queries: weights see a part of the gradient.
        norm = partial(NORMS.get(config.norm), hidden=heads.dim, eps=config.norm_eps, tp=tp, split=True)
        self.q_norm, self.k_norm = (norm(f"{name}.{part}_norm") if config.qk_norm else None for part in "qk")
        out_init = output(config, config.heads * heads.dim, gain)
        bias = [whole(f"{name}.out.bias", (config.hidden,), Init(), tp.axis, partial_grad=tp.sequence_parallel)]
        self.out = RowLinear(
            [columns(f"{name}.out.weight", (config.hidden, config.heads * heads.dim), out_init, tp.axis)],
            bias if config.attention_out_bias else [],
            tp,
        )

    def forward(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        # Outside of what is recomputed: it overwrites its input, which would be rotated twice.
        qkv_bsf = self.positions.rotate(self._normed(self.qkv(x_bsh)), self.heads.q + self.heads.kv, ctx)
        if self.recompute and self.training:
            out = checkpoint(self._core, qkv_bsf, ctx, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._core(qkv_bsf, ctx)
        return self.out(out)

    def _normed(self, qkv_bsf: Tensor) -> Tensor:
        """Norm each head of q and of k (arXiv 2302.05442), so that attention's logits cannot grow with the weights."""
        if self.q_norm is None or self.k_norm is None:
            return qkv_bsf
        widths = [count * self.heads.dim for count in (self.heads.q, self.heads.kv, self.heads.kv)]
        q_bsf, k_bsf, v_bsf = qkv_bsf.split(widths, dim=-1)
        normed = [
            norm(x_bsf.unflatten(-1, (-1, self.heads.dim))).flatten(-2)
            for norm, x_bsf in ((self.q_norm, q_bsf), (self.k_norm, k_bsf))
        ]
        return torch.cat([*normed, v_bsf], dim=-1)

    def _core(self, qkv_bsf: Tensor, ctx: Pass) -> Tensor:
        heads = self.heads
        b, s, _ = qkv_bsf.shape
        qkv_bsgd = qkv_bsf.view(b, s, -1, heads.dim)
        if self.dropout > 0 and ctx.key is not None:
            out_bshd = dropped_attention(
                qkv_bsgd, heads.q, heads.kv, ctx.keys, p=self.dropout, key=ctx.key(self.layer, "attention"),
                rows_bs=ctx.tokens_bs, head_offset=heads.q_start, heads_total=self.heads_total,
            )  # fmt: skip
        else:
            out_bshd = attention(qkv_bsgd, heads.q, heads.kv, ctx.keys)
        return out_bshd.reshape(b, s, heads.q * heads.dim)
