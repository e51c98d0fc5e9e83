"""What a rank hands over to be saved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """A box of the global tensor `name` (shape `global_shape`): `tensor` holds the values found at `offsets`."""

    name: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor
