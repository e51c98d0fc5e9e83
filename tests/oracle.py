"""The plain one-process transformer that every layout is held to.

It shares nothing with the engine's layers: weights are a dictionary by global name, the whole global batch is
one batch, gradients come from autograd alone, the optimizer is torch.optim.AdamW and the clipping torch's own.
Only `random_bits` (itself held to Philox's published vectors) is used, to draw the same dropout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import ModelConfig
from engine.ops.philox import make_key, random_bits


class PlainModel:
    """A transformer over `weights` (leaf tensors by global name)."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], seed: int, z_loss: float = 0.0) -> None:
        self.config, self.seed, self.z_loss = config, seed, z_loss
        self.weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}

    def logits(
        self,
        tokens_bs: Tensor,
        step: int | None = None,
        documents_bs: Tensor | None = None,
        positions_bs: Tensor | None = None,
        prefix_bs: Tensor | None = None,
        blocks_bs: Tensor | None = None,
    ) -> Tensor:
        """Return [b, s, v]; `step` switches dropout on and addresses it."""
        c, w = self.config, self.weights
        b, s = tokens_bs.shape
        rows_bs = torch.arange(b * s).view(b, s)
        positions_bs = torch.arange(s).expand(b, s) if positions_bs is None else positions_bs
        mask_bss = torch.ones(s, s, dtype=torch.bool).tril().expand(b, s, s)
        if documents_bs is not None:
            together_bss = documents_bs[:, :, None] == documents_bs[:, None, :]
            mask_bss = mask_bss & together_bss
            if prefix_bs is not None:
                mask_bss = mask_bss | (together_bss & prefix_bs[:, None, :])
        x = w["embedding.weight"][tokens_bs]
        x = c.embedding_grad * x + (1 - c.embedding_grad) * x.detach()
        if c.embedding_norm:
            x = self._norm(x, "embedding_norm")
        if c.positions.startswith("learned"):
            x = x + w["positions.weight"][positions_bs]
        if c.positions == "learned_2d" and blocks_bs is not None:
            x = x + w["block_positions.weight"][blocks_bs]
        x = self._drop(x, c.embedding_dropout, step, -1, "embedding", rows_bs)
        for layer in range(c.layers):
            p = f"layers.{layer}"
            y = self._attention(self._norm(x, f"{p}.norm1"), layer, step, rows_bs, positions_bs, mask_bss)
            x = x + self._drop(y, c.hidden_dropout, step, layer, "attention_out", rows_bs)
            y = self._mlp(self._norm(x, f"{p}.norm2"), p)
            x = x + self._drop(y, c.hidden_dropout, step, layer, "mlp_out", rows_bs)
        head = w["embedding.weight"] if c.tied_embeddings else w["head.weight"]
        return self._norm(x, "final_norm") @ head.t()

    def loss(
        self, tokens_bs: Tensor, labels_bs: Tensor, mask_bs: Tensor, step: int | None = None, **kwargs: Tensor
    ) -> Tensor:
        logits = self.logits(tokens_bs, step, **kwargs)
        losses = F.cross_entropy(logits.flatten(0, 1), labels_bs.flatten(), reduction="none")
        losses = losses + self.z_loss * logits.logsumexp(-1).square().flatten()
        return (losses * mask_bs.flatten()).sum() / mask_bs.sum()

    def _drop(self, x: Tensor, p: float, step: int | None, layer: int, site: str, rows: Tensor) -> Tensor:
        if p == 0 or step is None:
            return x
        width = x.shape[-1]
        index = rows[..., None] * width + torch.arange(width)
        keep = random_bits(make_key(self.seed, "dropout", step, layer, site), index) >= int(p * 2**32)
        return x * keep / (1 - p)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        c, weight = self.config, self.weights[f"{name}.weight"]
        if c.norm == "layernorm":
            return F.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"], c.norm_eps)
        return x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * weight

    def _rotate(self, x: Tensor, positions_bs: Tensor) -> Tensor:
        dim = x.shape[-1]
        frequency = 1.0 / (self.config.rope_theta ** (torch.arange(0, dim, 2).float() / dim))
        angle = (positions_bs[..., None].float() * frequency)[:, :, None, :]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def _attention(
        self, x: Tensor, layer: int, step: int | None, rows_bs: Tensor, positions_bs: Tensor, mask_bss: Tensor
    ) -> Tensor:
        c, name = self.config, f"layers.{layer}.attention"
        b, s, _ = x.shape
        kv, dim = c.kv_heads or c.heads, c.head_dim or c.hidden // c.heads
        q = self._linear(x, f"{name}.q").view(b, s, c.heads, dim)
        k, v = (self._linear(x, f"{name}.{part}").view(b, s, kv, dim) for part in "kv")
        if c.qk_norm:
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        if c.positions == "rope":
            q, k = self._rotate(q, positions_bs), self._rotate(k, positions_bs)
        k, v = (t.repeat_interleave(c.heads // kv, dim=2) for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bqhk", q, k) / math.sqrt(dim)
        scores = scores.masked_fill(~mask_bss[:, :, None, :], -math.inf)
        rows = rows_bs[:, :, None] * c.heads + torch.arange(c.heads)
        probs = self._drop(scores.softmax(-1), c.attention_dropout, step, layer, "attention", rows)
        out = torch.einsum("bqhk,bkhd->bqhd", probs, v).reshape(b, s, c.heads * dim)
        return self._linear(out, f"{name}.out")

    def _mlp(self, x: Tensor, prefix: str) -> Tensor:
        up = self._linear(x, f"{prefix}.mlp.up")
        if self.config.activation == "swiglu":
            up = F.silu(self._linear(x, f"{prefix}.mlp.gate")) * up
        else:
            up = F.gelu(up, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")
        return self._linear(up, f"{prefix}.mlp.down")


def train(
    model: PlainModel,
    batches: list[dict[str, Tensor]],
    *,
    lr: list[float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip: float,
    decay_embeddings: bool = True,
) -> tuple[list[float], list[float]]:
    """Run one AdamW step per batch; return losses and gradient norms before clipping. Vectors do not decay."""
    tables = () if decay_embeddings else ("embedding.weight", "positions.weight", "block_positions.weight")
    decayed = [w for name, w in model.weights.items() if w.ndim > 1 and name not in tables]
    others = [w for name, w in model.weights.items() if w.ndim == 1 or name in tables]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr[0], betas=betas, eps=eps)
    losses, norms = [], []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr[step]
        optimizer.zero_grad()
        loss = model.loss(**batch, step=step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(model.weights.values()), clip if clip else math.inf)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms
