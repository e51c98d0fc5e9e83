"""LayerNorm (arXiv 1607.06450): (x - mean) / std * weight + bias."""

from __future__ import annotations

from torch import Tensor, nn

from engine.models.registry import NORMS
from engine.ops.norm import add_layer_norm, layer_norm
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import Init, parameter, whole


@NORMS.register("layernorm")
class LayerNorm(nn.Module):
    """[..., h] -> [..., h]; weight and bias are replicated over tp. `split`: the ranks norm different rows, in any
    case."""

    def __init__(self, name: str, hidden: int, eps: float, tp: TensorParallel, split: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = (
            parameter(
                [whole(f"{name}.{part}", (hidden,), init, tp.axis, partial_grad=split or tp.sequence_parallel)],
                tp.dtype,
                tp.device,
            )
            for part, init in (("weight", Init(value=1.0)), ("bias", Init()))
        )

    def forward(self, x_bsh: Tensor) -> Tensor:
        return layer_norm(x_bsh, self.weight, self.bias, self.eps)

    def add(self, x_bsh: Tensor, residual_bsh: Tensor) -> tuple[Tensor, Tensor]:
        return add_layer_norm(x_bsh, residual_bsh, self.weight, self.bias, self.eps)
