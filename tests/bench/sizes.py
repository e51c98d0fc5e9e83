"""What both sides of the bench compute: the model's sizes, its starting weights and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True)
class Sizes:
    """A Llama-style model (RMSNorm, RoPE, SwiGLU, untied head, fp32) and its global batch."""

    layers: int = 8
    hidden: int = 384
    heads: int = 6
    ffn: int = 1024
    vocab: int = 8192
    seq: int = 512
    samples: int = 4
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.samples * self.seq

    @property
    def head_cost(self) -> float:
        """Matrix products of the output projection in units of one block's; used to split pipeline stages."""
        return self.vocab / (4 * self.hidden + 3 * self.ffn)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight by Trimaran's global name."""
        block = {
            "norm1.weight": (self.hidden,),
            "attention.q.weight": (self.hidden, self.hidden),
            "attention.k.weight": (self.hidden, self.hidden),
            "attention.v.weight": (self.hidden, self.hidden),
            "attention.out.weight": (self.hidden, self.hidden),
            "norm2.weight": (self.hidden,),
            "mlp.gate.weight": (self.ffn, self.hidden),
            "mlp.up.weight": (self.ffn, self.hidden),
            "mlp.down.weight": (self.hidden, self.ffn),
        }
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        return shapes | {"final_norm.weight": (self.hidden,), "head.weight": (self.vocab, self.hidden)}


FULL = Sizes()
QUICK = Sizes(layers=2, hidden=64, heads=2, ffn=96, vocab=256, seq=32)


def draw_weights(sizes: Sizes) -> dict[str, Tensor]:
    """Return the starting weights by global name: equal on every rank and on both sides.

    Norm weights differ from one another, so that a wrong name map cannot go unnoticed.
    """
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for name, shape in sizes.shapes().items():
        noise = torch.randn(shape, generator=generator)
        is_output = name.endswith(("attention.out.weight", "mlp.down.weight"))
        std = 0.02 / math.sqrt(2 * sizes.layers) if is_output else 0.02
        weights[name] = 1.0 + 0.1 * noise if len(shape) == 1 else std * noise
    return weights


def draw_window(sizes: Sizes, step: int) -> Tensor:
    """Return step's global batch [samples, seq + 1]: tokens are all but the last column, labels all but the first."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, sizes.vocab, (sizes.samples, sizes.seq + 1), generator=generator)
