"""The feed-forward layer: up (and gate) column-parallel, down row-parallel."""

from __future__ import annotations

from torch import Tensor, nn

from engine.config import ModelConfig
from engine.models.inits import matrix, output
from engine.models.registry import ACTIVATIONS
from engine.parallel.linear import ColumnLinear, RowLinear, TensorParallel
from engine.parallel.sharding import VECTOR, Init, columns, rows, whole


class FeedForward(nn.Module):
    """[b, s, h] -> [b, s, h] (sequence shards under SP). Gate and up are one product.

    `gain` multiplies the standard deviation of all weights at the start.
    """

    def __init__(self, name: str, config: ModelConfig, tp: TensorParallel, gain: float = 1.0) -> None:
        super().__init__()
        self.activation = ACTIVATIONS.get(config.activation)
        parts = ("gate", "up") if self.activation.gated else ("up",)
        width = config.ffn // tp.axis.size
        start, stop = tp.axis.rank * width, (tp.axis.rank + 1) * width
        init = matrix(config, config.hidden, config.ffn, gain)
        up_weight = [rows(f"{name}.{p}.weight", (config.ffn, config.hidden), init, start, stop) for p in parts]
        up_bias = [rows(f"{name}.{p}.bias", (config.ffn,), Init(), start, stop, VECTOR) for p in parts]
        self.up = ColumnLinear(up_weight, up_bias if config.mlp_bias else [], tp)
        down_init = output(config, config.ffn, gain)
        down_weight = columns(f"{name}.down.weight", (config.hidden, config.ffn), down_init, tp.axis)
        down_bias = whole(f"{name}.down.bias", (config.hidden,), Init(), tp.axis, partial_grad=tp.sequence_parallel)
        self.down = RowLinear([down_weight], [down_bias] if config.mlp_bias else [], tp)

    def forward(self, x_bsh: Tensor) -> Tensor:
        return self.down(self.activation.function(self.up(x_bsh)))
