"""What a component of each trait looks like to the transformer, and what a forward pass carries along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from engine.config import ModelConfig
from engine.mesh import Axis
from engine.models.heads import Heads
from engine.ops.key_ranges import KeyRanges
from engine.parallel.linear import TensorParallel


@dataclass(frozen=True)
class Activation:
    """`function` maps [..., 2f] (gate, then up) to [..., f] when `gated`, else [..., f] to [..., f]."""

    function: Callable[[Tensor], Tensor]
    gated: bool


@dataclass(frozen=True)
class Pass:
    """What one forward pass of one micro-batch knows besides its activations.

    `tokens_bs` are global token positions (sample's slot * sequence length + position), which address dropout;
    `positions_bs` (or [s]) are positions inside the document; `keys` says which keys each query sees.
    `key(layer, site)` is the dropout key of this step, None when nothing is dropped.
    `blocks` [b, s] are places inside blanks (GLM), None where there are none.
    `memo` keeps what is the same in every layer, such as rotary tables.
    """

    tokens_bs: Tensor
    positions: Tensor
    keys: KeyRanges
    key: Callable[[int, str], int] | None
    memo: dict[str, Any] = field(default_factory=dict)
    blocks: Tensor | None = None

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return `make()`, made only once in this pass."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]


class Norm(Protocol):
    """A normalisation over the last dimension of [..., h]."""

    def __call__(self, x_bsh: Tensor) -> Tensor: ...

    def add(self, x_bsh: Tensor, residual_bsh: Tensor) -> tuple[Tensor, Tensor]:
        """Return (norm of x + residual, x + residual), in one pass where a kernel serves it."""


class ScoreTerms(nn.Module):
    """What a layer's positions add to the scores of attention."""

    def forward(self, ctx: Pass) -> dict[str, Any]:
        """Return fields of `engine.ops.attention.Scores`."""
        raise NotImplementedError


class Positions(nn.Module):
    """How token order enters; nothing of it here. Every stage and every attention layer has one.

    `with_table` says that this one belongs to the stage that embeds tokens.
    """

    LEARNS_SCORES: ClassVar[bool] = False  # terms of the scores have gradients: attention must be written out

    def __init__(self, config: ModelConfig, tp: TensorParallel, *, with_table: bool) -> None:
        super().__init__()
        self.config, self.tp = config, tp

    def embed(self, x_bsh: Tensor, ctx: Pass) -> Tensor:
        """Add to the embeddings (a sequence shard under SP)."""
        return x_bsh

    def rotate(self, qkv_bsf: Tensor, turned: int, ctx: Pass) -> Tensor:
        """Treat the first `turned` heads, queries and keys, of a packed projection, which may be overwritten."""
        return qkv_bsf

    def score_terms(self, name: str, heads: Heads) -> ScoreTerms | None:
        """Return what the attention layer called `name` adds to its scores."""
        return None

    @classmethod
    def shared(cls, config: ModelConfig, tp: TensorParallel, pp: Axis) -> SharedPositions | None:
        """Return what all layers share: every stage has a copy of it, whose gradients add up over `pp`."""
        return None


class SharedPositions(nn.Module):
    """Computed once a pass of each chunk, for all of its layers."""

    def forward(self, ctx: Pass) -> None:
        """Leave it in `ctx.memo`."""
        raise NotImplementedError
