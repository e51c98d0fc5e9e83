"""Sines and cosines of the position (arXiv 1706.03762), added to the embeddings or projected to keys of distances."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.models.registry import POSITIONS
from engine.models.traits import Pass, Positions


@POSITIONS.register("sinusoidal")
class SinusoidalPositions(Positions):
    """Nothing is learned, and nothing limits the length."""

    def embed(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        waves = sinusoids(ctx.positions, self.config.hidden).to(x_bsh.dtype)
        return x_bsh + self.tp.local_sequence(waves.expand(*ctx.tokens_bs.shape, -1))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return [..., width] float32: sines of position * 10000^(-2i/width), then their cosines; `width` is even."""
    frequency = 1.0 / (10000.0 ** (torch.arange(0, width, 2, device=positions.device).float() / width))
    angle = positions[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
