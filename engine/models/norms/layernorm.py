"""LayerNorm (arXiv 1607.06450): (x - mean) / std * weight + bias; PaLM and LaMDA have no bias."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from engine.models.registry import NORMS
from engine.ops.norm import add_layer_norm, layer_norm
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import Init, parameter, whole


@NORMS.register("layernorm")
class LayerNorm(nn.Module):
    """[..., h] -> [..., h]; weight and bias are replicated over tp. `split`: the ranks norm different rows, in any
    case."""

    HAS_BIAS: ClassVar[bool] = True

    def __init__(self, name: str, hidden: int, eps: float, tp: TensorParallel, split: bool = False) -> None:
        super().__init__()
        self.eps = eps

        def vector(part: str, init: Init) -> nn.Parameter:
            partial = split or tp.sequence_parallel
            piece = whole(f"{name}.{part}", (hidden,), init, tp.axis, partial_grad=partial)
            return parameter([piece], tp.dtype, tp.device)

        self.weight = vector("weight", Init(value=1.0))
        self.bias = vector("bias", Init()) if self.HAS_BIAS else None

    def forward(self, x_bsh: Tensor) -> Tensor:
        return layer_norm(x_bsh, self.weight, self.bias, self.eps)

    def add(self, x_bsh: Tensor, residual_bsh: Tensor) -> tuple[Tensor, Tensor]:
        return add_layer_norm(x_bsh, residual_bsh, self.weight, self.bias, self.eps)


@NORMS.register("layernorm_no_bias")
class LayerNormNoBias(LayerNorm):
    HAS_BIAS = False
