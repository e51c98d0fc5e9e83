"""RMSNorm (arXiv 1910.07467): x / rms(x) * weight."""

from __future__ import annotations

from torch import Tensor, nn

from engine.models.registry import NORMS
from engine.ops.norm import add_rms_norm, rms_norm
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import Init, parameter, whole


@NORMS.register("rmsnorm")
class RMSNorm(nn.Module):
    """[..., h] -> [..., h]; the weight is replicated over tp. `split`: the ranks norm different rows, in any case."""

    def __init__(self, name: str, hidden: int, eps: float, tp: TensorParallel, split: bool = False) -> None:
        super().__init__()
        self.eps = eps
        partial = split or tp.sequence_parallel
        weight = whole(f"{name}.weight", (hidden,), Init(value=1.0), tp.axis, partial_grad=partial)
        self.weight = parameter([weight], tp.dtype, tp.device)

    def forward(self, x_bsh: Tensor) -> Tensor:
        return rms_norm(x_bsh, self.weight, self.eps)

    def add(self, x_bsh: Tensor, residual_bsh: Tensor) -> tuple[Tensor, Tensor]:
        return add_rms_norm(x_bsh, residual_bsh, self.weight, self.eps)
