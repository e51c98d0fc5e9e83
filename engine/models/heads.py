"""Which attention heads a rank has, and its pieces of the matrices that make queries, keys and values of them."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import ModelConfig
from engine.mesh import Axis
from engine.models.inits import matrix
from engine.parallel.sharding import VECTOR, Init, Piece, rows


@dataclass(frozen=True)
class Heads:
    """The heads of one rank: queries [q_start, q_start + q), and `kv` key/value heads from kv_start on.

    `kv_axis` joins the ranks that hold the same kv head (size 1 when each holds its own).
    """

    q: int
    kv: int
    q_start: int
    kv_start: int
    dim: int
    kv_axis: Axis

    @classmethod
    def of(cls, config: ModelConfig, tp: Axis, kv_axis: Axis) -> Heads:
        kv_total = config.kv_heads or config.heads
        q, kv = config.heads // tp.size, max(1, kv_total // tp.size)
        kv_start = tp.rank * kv_total // tp.size
        return cls(q, kv, tp.rank * q, kv_start, config.head_dim or config.hidden // config.heads, kv_axis)


def qkv_pieces(name: str, config: ModelConfig, heads: Heads, gain: float = 1.0, parts: str = "qkv") -> list[Piece]:
    """Return my pieces of the matrices called `name` with q, k and v filled in, or, for names of biases, of those.

    `gain` multiplies the standard deviation of the values' matrix at the start.
    """
    q_start, q_stop = heads.q_start * heads.dim, (heads.q_start + heads.q) * heads.dim
    kv_start, kv_stop = heads.kv_start * heads.dim, (heads.kv_start + heads.kv) * heads.dim
    pieces = []
    for part in parts:
        height = (config.heads if part == "q" else config.kv_heads or config.heads) * heads.dim
        start, stop = (q_start, q_stop) if part == "q" else (kv_start, kv_stop)
        if name.endswith("bias"):
            piece = rows(name.format(part), (height,), Init(), start, stop, VECTOR)
        else:
            init = matrix(config, config.hidden, height, gain if part == "v" else 1.0)
            piece = rows(name.format(part), (height, config.hidden), init, start, stop)
        pieces.append(piece if part == "q" else piece.shared(heads.kv_axis))
    return pieces
