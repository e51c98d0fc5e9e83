"""The plain one-process transformer that every layout is held to.

It shares nothing with the engine's layers: weights are a dictionary by global name, the whole global batch is
one batch, gradients come from autograd alone, the optimizer is torch.optim.AdamW and the clipping torch's own.
Only `random_bits` (itself held to Philox's published vectors) is used, to draw the same dropout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import ModelConfig
from engine.ops.philox import make_key, random_bits

CURVES = {
    "swiglu": F.silu, "geglu": F.gelu, "geglu_tanh": lambda x: F.gelu(x, approximate="tanh"), "reglu": F.relu,
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu,
    "squared_relu": lambda x: F.relu(x) ** 2,
}  # fmt: skip


class Batch(NamedTuple):
    """What a pass knows: the step whose dropout is drawn (None: none), and places, positions and masks of tokens."""

    step: int | None
    rows_bs: Tensor
    positions_bs: Tensor
    mask_bss: Tensor


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
        mask_bss = torch.ones(s, s, dtype=torch.bool).tril().expand(b, s, s)
        if documents_bs is not None:
            together_bss = documents_bs[:, :, None] == documents_bs[:, None, :]
            mask_bss = mask_bss & together_bss
            if prefix_bs is not None:
                mask_bss = mask_bss | (together_bss & prefix_bs[:, None, :])
        positions_bs = torch.arange(s).expand(b, s) if positions_bs is None else positions_bs
        batch = Batch(step, torch.arange(b * s).view(b, s), positions_bs, mask_bss)
        x = w["embedding.weight"][tokens_bs]
        x = c.embedding_grad * x + (1 - c.embedding_grad) * x.detach()
        x = x * (math.sqrt(c.hidden) if c.embedding_scale is None else c.embedding_scale)
        if c.embedding_norm:
            x = self._norm(x, "embedding_norm")
        if c.positions.startswith("learned"):
            x = x + w["positions.weight"][positions_bs]
        if c.positions == "sinusoidal":
            x = x + self._waves(positions_bs)
        if c.positions == "learned_2d" and blocks_bs is not None:
            x = x + w["block_positions.weight"][blocks_bs]
        x = self._drop(x, c.embedding_dropout, batch, -1, "embedding", batch.rows_bs)
        for layer in range(c.layers):
            x = self._block(x, layer, batch)
        x = self._norm(x, "final_norm") if c.final_norm else x
        head = w["embedding.weight"] if c.tied_embeddings else w["head.weight"]
        logits = x @ head.t() * (1 / math.sqrt(c.hidden) if c.logit_scale is None else c.logit_scale)
        return logits + w["head.bias"] if c.head_bias else logits

    def loss(
        self, tokens_bs: Tensor, labels_bs: Tensor, mask_bs: Tensor, step: int | None = None, **kwargs: Tensor
    ) -> Tensor:
        logits = self.logits(tokens_bs, step, **kwargs)
        losses = F.cross_entropy(logits.flatten(0, 1), labels_bs.flatten(), reduction="none")
        losses = losses + self.z_loss * logits.logsumexp(-1).square().flatten()
        return (losses * mask_bs.flatten()).sum() / mask_bs.sum()

    def _block(self, x: Tensor, layer: int, batch: Batch) -> Tensor:
        c, p = self.config, f"layers.{layer}"

        def attention(y: Tensor) -> Tensor:
            out = self._attention(y, layer, batch)
            out = self._norm(out, f"{p}.norm1_out") if c.block == "sandwich" else out
            return self._drop(out, c.hidden_dropout, batch, layer, "attention_out", batch.rows_bs)

        def mlp(y: Tensor) -> Tensor:
            out = self._mlp(y, p)
            out = self._norm(out, f"{p}.norm2_out") if c.block == "sandwich" else out
            return self._drop(out, c.hidden_dropout, batch, layer, "mlp_out", batch.rows_bs)

        if c.block in ("pre_norm", "sandwich"):
            x = x + attention(self._norm(x, f"{p}.norm1"))
            return x + mlp(self._norm(x, f"{p}.norm2"))
        if c.block == "parallel":
            y = self._norm(x, f"{p}.norm1")
            return x + attention(y) + mlp(y)
        if c.block == "parallel_two_norms":
            return x + attention(self._norm(x, f"{p}.norm1")) + mlp(self._norm(x, f"{p}.norm2"))
        alpha = {"post_norm": 1.0, "deepnorm": (2 * c.layers) ** 0.25, "deepnorm_glm": math.sqrt(2 * c.layers)}[c.block]
        x = self._norm(alpha * x + attention(x), f"{p}.norm1")
        return self._norm(alpha * x + mlp(x), f"{p}.norm2")

    def _drop(self, x: Tensor, p: float, batch: Batch, layer: int, site: str, rows: Tensor) -> Tensor:
        if p == 0 or batch.step is None:
            return x
        width = x.shape[-1]
        index = rows[..., None] * width + torch.arange(width)
        keep = random_bits(make_key(self.seed, "dropout", batch.step, layer, site), index) >= int(p * 2**32)
        return x * keep / (1 - p)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        c, weight = self.config, self.weights[f"{name}.weight"]
        if c.norm == "rmsnorm":
            return x / (x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * weight
        bias = self.weights[f"{name}.bias"] if c.norm == "layernorm" else None
        return F.layer_norm(x, weight.shape, weight, bias, c.norm_eps)

    def _rotate(self, x: Tensor, positions_bs: Tensor) -> Tensor:
        c = self.config
        dim = round(x.shape[-1] * c.rope_fraction)
        x, rest = x[..., :dim], x[..., dim:]
        angle = (positions_bs[..., None].float() * self._frequencies(dim))[:, :, None, :]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = (x[..., 0::2], x[..., 1::2]) if c.rope_interleaved else x.chunk(2, dim=-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1 if c.rope_interleaved else -2)
        return torch.cat([turned.flatten(-2), rest], dim=-1)

    def _frequencies(self, dim: int) -> Tensor:
        """Llama 3.1's rule by wavelengths; float32, as published models are trained."""
        c = self.config
        frequencies = 1.0 / (c.rope_theta ** (torch.arange(0, dim, 2).float() / dim))
        if c.rope_scaling == 1.0:
            return frequencies
        found = []
        for frequency in frequencies:
            wavelength = 2 * math.pi / frequency
            smooth = c.rope_scaling_context / wavelength - c.rope_scaling_low
            smooth = smooth / (c.rope_scaling_high - c.rope_scaling_low)
            if wavelength < c.rope_scaling_context / c.rope_scaling_high:
                found.append(frequency)
            elif wavelength > c.rope_scaling_context / c.rope_scaling_low:
                found.append(frequency / c.rope_scaling)
            else:
                found.append((1 - smooth) * frequency / c.rope_scaling + smooth * frequency)
        return torch.stack(found)

    def _attention(self, x: Tensor, layer: int, batch: Batch) -> Tensor:
        c, name = self.config, f"layers.{layer}.attention"
        b, s, _ = x.shape
        kv, dim = c.kv_heads or c.heads, c.head_dim or c.hidden // c.heads
        asks = c.query_layer and layer == c.layers - 1
        q = self._linear(self.weights["query_positions.weight"][batch.positions_bs] if asks else x, f"{name}.q")
        q = q.view(b, s, c.heads, dim)
        k, v = (self._linear(x, f"{name}.{part}").view(b, s, kv, dim) for part in "kv")
        if c.qk_norm:
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        if c.positions == "rope":
            q, k = self._rotate(q, batch.positions_bs), self._rotate(k, batch.positions_bs)
        k, v = (t.repeat_interleave(c.heads // kv, dim=2) for t in (k, v))
        scores = self._scores(q, k, name) * (1 / math.sqrt(dim) if c.attention_scale is None else c.attention_scale)
        if c.attention_softcap:
            scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
        distance = torch.arange(s)[:, None] - torch.arange(s)
        if c.positions == "alibi":
            scores = scores - self._slopes()[:, None] * distance[:, None, :]
        if c.positions == "t5":
            buckets = [[self._bucket(int(d)) for d in row] for row in distance]
            scores = scores + self.weights["relative_bias.weight"][:, torch.tensor(buckets)].transpose(0, 1)
        mask_bss = batch.mask_bss
        if c.attention_window is not None and layer % c.window_interval == c.window_interval - 1:
            mask_bss = mask_bss & (distance.abs() < c.attention_window)
        scores = scores.masked_fill(~mask_bss[:, :, None, :], -math.inf)
        rows = batch.rows_bs[:, :, None] * c.heads + torch.arange(c.heads)
        probs = self._drop(scores.softmax(-1), c.attention_dropout, batch, layer, "attention", rows)
        out = torch.einsum("bqhk,bkhd->bqhd", probs, v).reshape(b, s, c.heads * dim)
        return self._linear(out, f"{name}.out")

    def _scores(self, q: Tensor, k: Tensor, name: str) -> Tensor:
        """q k, or what Transformer-XL makes of it, written out distance by distance: [b, q, h, k]."""
        if self.config.positions != "transformer_xl":
            return torch.einsum("bqhd,bkhd->bqhk", q, k)
        s, shape = q.shape[1], q.shape[2:]
        u, v = (self.weights[f"{name}.{part}.bias"].view(shape) for part in ("content", "place"))
        r = self._linear(self._waves(torch.arange(s)), f"{name}.distance").view(s, *shape)
        rows = []
        for i in range(s):
            distances = (i - torch.arange(s)).clamp(min=0)
            content = torch.einsum("bhd,bkhd->bhk", q[:, i] + u, k)
            rows.append(content + torch.einsum("bhd,khd->bhk", q[:, i] + v, r[distances]))
        return torch.stack(rows, dim=1)

    def _waves(self, positions: Tensor) -> Tensor:
        """Sines, then cosines; float32 angles."""
        width = self.config.hidden
        angle = positions[..., None].float() * (1.0 / (10000.0 ** (torch.arange(0, width, 2).float() / width)))
        return torch.cat([angle.sin(), angle.cos()], -1).to(self.weights["embedding.weight"].dtype)

    def _slopes(self) -> Tensor:
        """The published recipe: a geometric sequence for powers of two, every other one of twice as many beyond."""
        n = self.config.heads
        whole = 1 << (n.bit_length() - 1)
        first = [(2 ** (-8 / whole)) ** (i + 1) for i in range(whole)]
        twice = [(2 ** (-8 / (2 * whole))) ** (i + 1) for i in range(2 * whole)]
        return torch.tensor(first + twice[0::2][: n - whole], dtype=torch.float32)

    def _bucket(self, distance: int) -> int:
        c = self.config
        distance, exact = max(distance, 0), c.relative_buckets // 2
        if distance < exact:
            return distance
        grown = math.log(distance / exact) / math.log(c.relative_distance / exact) * (c.relative_buckets - exact)
        return min(exact + int(grown), c.relative_buckets - 1)

    def _mlp(self, x: Tensor, prefix: str) -> Tensor:
        up, curve = self._linear(x, f"{prefix}.mlp.up"), CURVES[self.config.activation]
        gated = self.config.activation in ("swiglu", "geglu", "geglu_tanh", "reglu")
        up = curve(self._linear(x, f"{prefix}.mlp.gate")) * up if gated else curve(up)
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
    tables = ("embedding.weight", "positions.weight", "block_positions.weight", "query_positions.weight",
              "relative_bias.weight")  # fmt: skip
    tables = () if decay_embeddings else tables
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
