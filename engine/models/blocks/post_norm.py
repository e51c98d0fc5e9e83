"""Norms of the sums, as in the first transformer (arXiv 1706.03762), and DeepNorm (arXiv 2203.00555), which weighs
the residual stream by alpha and starts the branches smaller by beta, so that hundreds of such layers train.
"""

from __future__ import annotations

from torch import Tensor

from engine.config import ModelConfig
from engine.models.block import Block
from engine.models.registry import BLOCKS
from engine.models.traits import Pass


@BLOCKS.register("post_norm")
class PostNorm(Block):
    def __init__(self, layer: int, config: ModelConfig, *args: object) -> None:
        super().__init__(layer, config, *args)  # type: ignore[arg-type]
        self.alpha = self.weight(config)

    @classmethod
    def weight(cls, config: ModelConfig) -> float:
        """Return alpha, the weight of the residual stream in the sums."""
        return 1.0

    def _body(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        branch_bsh = self.attention(x_bsh, ctx)
        x_bsh, _ = self._add_normed(self._weighed(x_bsh), branch_bsh, "norm1", ctx, "attention_out")
        branch_bsh = self.mlp(x_bsh)
        x_bsh, _ = self._add_normed(self._weighed(x_bsh), branch_bsh, "norm2", ctx, "mlp_out")
        return x_bsh

    def _weighed(self, x_bsh: Tensor) -> Tensor:
        return x_bsh if self.alpha == 1.0 else x_bsh * self.alpha


@BLOCKS.register("deepnorm")
class DeepNorm(PostNorm):
    """alpha = (2 layers)^(1/4), beta = (8 layers)^(-1/4): the paper's for decoders."""

    @classmethod
    def weight(cls, config: ModelConfig) -> float:
        return (2 * config.layers) ** 0.25

    @classmethod
    def gain(cls, config: ModelConfig) -> float:
        return (8 * config.layers) ** -0.25


@BLOCKS.register("deepnorm_glm")
class DeepNormGLM(PostNorm):
    """alpha = (2 layers)^(1/2), beta = (2 layers)^(-1/2): GLM-130B's (arXiv 2210.02414)."""

    @classmethod
    def weight(cls, config: ModelConfig) -> float:
        return (2 * config.layers) ** 0.5

    @classmethod
    def gain(cls, config: ModelConfig) -> float:
        return (2 * config.layers) ** -0.5
