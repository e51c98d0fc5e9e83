"""Which part of which layout-independent tensor a local parameter holds.

Every weight has a global name and shape that no layout changes (`layers.3.attention.q.weight`). A local
parameter is one or more *pieces* stacked along dim 0, each a box of one global tensor: a fused q/k/v matrix
holds three. Initialisation, gradient reduction, norms, checkpoints and conversion all work on pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.errors import ConfigError
from engine.mesh import Axis
from engine.ops.philox import fill_normal_, make_key

MATRIX, EMBEDDING, VECTOR = "matrix", "embedding", "vector"


@dataclass(frozen=True)
class Init:
    """How a tensor starts: normal with standard deviation `std`, or filled with `value` when std is 0."""

    std: float = 0.0
    value: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A box of the global tensor `name`, held by this rank.

    `counted`: of all ranks (outside dp) that hold these elements, I am the one whose copy enters norms and
    checkpoints. `reduce`: the axis over which the gradient must be summed because each holder has only a part
    of it; None when every holder already has the whole gradient. `kind`: matrix, embedding (a table looked up by
    index) or vector (norm weights, biases); the optimizer decides by it what decays. `room`: the largest number of
    elements that any rank of tp holds of such a piece, when that differs between ranks.
    """

    name: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    init: Init
    counted: bool = True
    reduce: Axis | None = None
    kind: str = MATRIX
    room: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def shared(self, axis: Axis) -> Piece:
        """Mark the piece as one of `axis.size` copies whose gradients add up over `axis`; the first one counts."""
        if axis.size == 1:
            return self
        return replace(self, reduce=axis, counted=axis.is_first)

    def draw(self, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the initial values of this box: the same numbers in every layout (by name and global index)."""
        values = torch.empty(self.shape, dtype=dtype, device=device)
        if self.init.std == 0.0:
            return values.fill_(self.init.value)
        fill_normal_(values, make_key(seed, "init", self.name), self.global_shape, self.offsets, self.init.std)
        return values


def whole(name: str, shape: tuple[int, ...], init: Init, tp: Axis, *, partial_grad: bool, kind: str = VECTOR) -> Piece:
    """A tensor replicated over tp; `partial_grad` when each rank sees only its part of the sequence."""
    reduce = tp if partial_grad and tp.size > 1 else None
    return Piece(name, shape, (0,) * len(shape), shape, init, counted=tp.is_first, reduce=reduce, kind=kind)


def rows(name: str, shape: tuple[int, ...], init: Init, start: int, stop: int, kind: str = MATRIX) -> Piece:
    """Rows [start, stop) of a tensor of `shape`: a column-parallel weight or bias."""
    return Piece(name, shape, (start, *(0,) * (len(shape) - 1)), (stop - start, *shape[1:]), init, kind=kind)


def vocabulary_rows(name: str, shape: tuple[int, ...], init: Init, tp: Axis, kind: str) -> Piece:
    """My share of the rows of a table, head or bias over the vocabulary; ConfigError when there is none."""
    if shape[0] < tp.size:
        raise ConfigError(
            f"A vocabulary of {shape[0]} tokens cannot be split over parallel.tp={tp.size} ranks; write "
            f"parallel.tp={shape[0]} or less."
        )
    start, stop = share(shape[0], tp)
    largest = -(-shape[0] // tp.size)
    return replace(rows(name, shape, init, start, stop), kind=kind, room=largest * math.prod(shape[1:]))


def columns(name: str, shape: tuple[int, int], init: Init, tp: Axis) -> Piece:
    """An equal share of the columns of a matrix: a row-parallel weight."""
    width = shape[1] // tp.size
    return Piece(name, shape, (0, tp.rank * width), (shape[0], width), init)


def share(total: int, axis: Axis) -> tuple[int, int]:
    """Return my range of `total` items; the ranges of all ranks differ by one item at most."""
    return total * axis.rank // axis.size, total * (axis.rank + 1) // axis.size


def parameter(pieces: list[Piece], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Make an uninitialised parameter that holds `pieces` stacked along dim 0."""
    height = sum(piece.shape[0] for piece in pieces)
    weight = nn.Parameter(torch.empty((height, *pieces[0].shape[1:]), dtype=dtype, device=device))
    weight.pieces = tuple(pieces)  # type: ignore[attr-defined]
    return weight


def pieces_of(weight: Tensor) -> tuple[Piece, ...]:
    """Return the pieces that `parameter` stored."""
    return weight.pieces  # type: ignore[attr-defined, no-any-return]
