"""Causal self-attention with grouped key/value heads (arXiv 2305.13245), its heads split over tp.

q, k and v are one column-parallel product. When there are fewer kv heads than tp ranks, neighbouring ranks hold
the same kv head; each sees only its own queries, so that head's gradient is summed over those neighbours.
"""

from __future__ import annotations

from dataclasses import replace
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
from engine.ops.attention import Drop, Scores, attention
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
        self.layer, self.recompute, self.tp = layer, recompute, tp
        self.dropout, self.heads_total = config.attention_dropout, config.heads
        self.heads = heads = Heads.of(config, tp.axis, kv_axis)
        self.positions = POSITIONS.get(config.positions)(config, tp, with_table=False)
        self.score_terms = self.positions.score_terms(name, heads)
        self.window = config.attention_window if (layer + 1) % config.window_interval == 0 else None
        self.scores = Scores(config.attention_scale, config.attention_softcap)
        self._build_inputs(name, config, gain)
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

    def _build_inputs(self, name: str, config: ModelConfig, gain: float) -> None:
        self.qkv = self._inputs("qkv", name, config, gain)

    def _inputs(self, parts: str, name: str, config: ModelConfig, gain: float) -> ColumnLinear:
        """Return my heads' part of the projections to q, k or v, or several of them in one product."""
        weight = qkv_pieces(f"{name}.{{}}.weight", config, self.heads, gain, parts)
        bias = qkv_pieces(f"{name}.{{}}.bias", config, self.heads, gain, parts) if config.attention_bias else []
        return ColumnLinear(weight, bias, self.tp)

    def _project(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        """Return q, k and v of all my heads, packed."""
        return self.qkv(x_bsh)

    def forward(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        # Outside of what is recomputed: it overwrites its input, which would be rotated twice.
        qkv_bsf = self.positions.rotate(self._normed(self._project(x_bsh, ctx)), self.heads.q + self.heads.kv, ctx)
        scores = self.scores if self.score_terms is None else replace(self.scores, **self.score_terms(ctx))
        if self.recompute and self.training:
            out = checkpoint(self._core, qkv_bsf, scores, ctx, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._core(qkv_bsf, scores, ctx)
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

    def _core(self, qkv_bsf: Tensor, scores: Scores, ctx: Pass) -> Tensor:
        heads = self.heads
        b, s, _ = qkv_bsf.shape
        keys, drop = ctx.keys, None
        if self.window is not None:
            window = self.window
            keys = ctx.once("window", lambda: ctx.keys.within(window))
        if self.dropout > 0 and ctx.key is not None:
            drop = Drop(self.dropout, ctx.key(self.layer, "attention"), ctx.tokens_bs, heads.q_start, self.heads_total)
        qkv_bsgd = qkv_bsf.view(b, s, -1, heads.dim)
        out_bshd = attention(qkv_bsgd, heads.q, heads.kv, keys, scores=scores, drop=drop)
        return out_bshd.reshape(b, s, heads.q * heads.dim)


def written_out(config: ModelConfig) -> list[str]:
    """Return what of `config` no fused kernel of attention knows, so that its probabilities are held in full."""
    why = []
    if config.attention_dropout > 0:
        why.append(f"model.attention_dropout={config.attention_dropout:g}")
    if config.attention_softcap > 0:
        why.append(f"model.attention_softcap={config.attention_softcap:g}")
    if POSITIONS.get(config.positions).LEARNS_SCORES:
        why.append(f"model.positions={config.positions}")
    return why
