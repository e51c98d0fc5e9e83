"""A Llama in plain torch, in the manner of torchtitan's and of the DTensor tutorial, and its optimizer.

Projections stay separate (w1, w3, wq, wk, wv): on CPUs one fused product measured the same within noise, and
DTensor's ColwiseParallel needs them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.sizes import BETAS, EPS, LEARNING_RATE, WEIGHT_DECAY, Sizes

NAMES = {
    "tok_embeddings": "embedding",
    "attention_norm": "norm1",
    "attention.wq": "attention.q",
    "attention.wk": "attention.k",
    "attention.wv": "attention.v",
    "attention.wo": "attention.out",
    "ffn_norm": "norm2",
    "feed_forward.w1": "mlp.gate",
    "feed_forward.w3": "mlp.up",
    "feed_forward.w2": "mlp.down",
    "norm": "final_norm",
    "output": "head",
}


def global_name(name: str) -> str:
    """Translate a parameter name of `Llama` into Trimaran's global name."""
    prefix, owner = "", name.removesuffix(".weight")
    if owner.startswith("layers."):
        _, layer, owner = owner.split(".", 2)
        prefix = f"layers.{layer}."
    return f"{prefix}{NAMES[owner]}.weight"


class Attention(nn.Module):
    """[b, s, h] -> [b, s, h]; under tensor parallelism the projections give this rank's heads only."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(sizes.hidden, sizes.hidden, bias=False) for _ in range(4))

    def forward(self, x_bsh: Tensor, cos_sd: Tensor, sin_sd: Tensor) -> Tensor:
        b, s = x_bsh.shape[:2]
        q, k, v = (w(x_bsh).view(b, s, -1, self.head_dim).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos_sd, sin_sd), rotate(k, cos_sd, sin_sd)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(b, s, -1))


class FeedForward(nn.Module):
    """SwiGLU, [b, s, h] -> [b, s, h]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(sizes.hidden, sizes.ffn, bias=False) for _ in range(2))
        self.w2 = nn.Linear(sizes.ffn, sizes.hidden, bias=False)

    def forward(self, x_bsh: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_bsh)) * self.w3(x_bsh))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)
        self.attention = Attention(sizes)
        self.ffn_norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)
        self.feed_forward = FeedForward(sizes)

    def forward(self, x_bsh: Tensor, cos_sd: Tensor, sin_sd: Tensor) -> Tensor:
        x_bsh = x_bsh + self.attention(self.attention_norm(x_bsh), cos_sd, sin_sd)
        return x_bsh + self.feed_forward(self.ffn_norm(x_bsh))


class Llama(nn.Module):
    """Layers [start, stop) of the model with the ends that belong to them: tokens or hidden states in, logits out."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes, weights: dict[str, Tensor], layers: tuple[int, int] | None = None) -> None:
        super().__init__()
        start, stop = layers or (0, sizes.layers)
        self.tok_embeddings = nn.Embedding(sizes.vocab, sizes.hidden) if start == 0 else None
        self.layers = nn.ModuleDict({str(layer): Block(sizes) for layer in range(start, stop)})
        is_last = stop == sizes.layers
        self.norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps) if is_last else None
        self.output = nn.Linear(sizes.hidden, sizes.vocab, bias=False) if is_last else None
        cos, sin = rotation(sizes)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.load_state_dict({name: weights[global_name(name)] for name in self.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        if self.tok_embeddings is not None:
            x = self.tok_embeddings(x)
        for block in self.layers.values():
            x = block(x, self.cos, self.sin)
        if self.norm is not None and self.output is not None:
            x = self.output(self.norm(x))
        return x


def rotation(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Return cos and sin [s, head_dim / 2] of Llama's rotary angles."""
    frequencies = 1.0 / sizes.rope_theta ** (torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim)
    angles_sd = torch.outer(torch.arange(sizes.seq).float(), frequencies)
    return angles_sd.cos(), angles_sd.sin()


def rotate(x_bdsh: Tensor, cos_sd: Tensor, sin_sd: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of the last dimension."""
    a, b = x_bdsh.chunk(2, dim=-1)
    return torch.cat([a * cos_sd - b * sin_sd, b * cos_sd + a * sin_sd], dim=-1)


def token_loss(logits_bsv: Tensor, labels_bs: Tensor) -> Tensor:
    """Return the mean cross-entropy of all tokens."""
    return F.cross_entropy(logits_bsv.flatten(0, 1), labels_bs.flatten())


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that a backward pass has left."""
    return [p.grad for p in parameters if p.grad is not None]


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """Fused AdamW; norm weights do not decay, as everywhere in practice."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)
