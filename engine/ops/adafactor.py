"""What Adafactor keeps instead of the second moment (arXiv 1804.04235, algorithm 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.ops import backend


def means_of_squares(grad_rc: Tensor, eps1: float = 1e-30) -> tuple[Tensor, Tensor]:
    """Return the means over columns [r] and over rows [c] of grad^2 + eps1, for a matrix of float32 or float64."""
    if backend.native("adafactor", grad_rc):
        of_rows_r, of_columns_c = torch.ops.trimaran.means_of_squares(grad_rc.contiguous())
    else:
        square_rc = grad_rc.square()
        of_rows_r, of_columns_c = square_rc.mean(1), square_rc.mean(0)
    return of_rows_r.add_(eps1), of_columns_c.add_(eps1)
