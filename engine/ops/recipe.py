"""Tensors that are cheaper to compute again than to keep for the backward pass.

A norm or an activation costs one pass over memory, and keeps its input for its own backward pass. So it notes on its
output how to make that anew, and a linear layer that needs its input for the gradient of its weight keeps the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Recipe(NamedTuple):
    """make(source) gives the tensor, bit for bit."""

    make: Callable[[Tensor], Tensor]
    source: Tensor


def with_recipe(x: Tensor, make: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
    """Note on `x`, the output of an op, that make(source) gives it again; `source` must not be written to."""
    if not torch.compiler.is_dynamo_compiling():  # which decides by itself what to keep
        x.recipe = Recipe(make, source)  # type: ignore[attr-defined]
    return x


def recipe_of(x: Tensor) -> Recipe:
    """Return what to keep in place of `x`: its recipe, or itself where no op left one."""
    return getattr(x, "recipe", Recipe(_itself, x))


def _itself(x: Tensor) -> Tensor:
    return x
