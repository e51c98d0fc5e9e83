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


class _Noted(NamedTuple):
    """A recipe, and how often the tensor and its source had been written to when it was noted."""

    recipe: Recipe
    versions: tuple[int, int]


def with_recipe(x: Tensor, make: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
    """Note on `x`, the output of an op, that make(source) gives it again."""
    # torch.compile decides by itself what to keep; inference tensors have no backward pass and count no writes
    if not (torch.compiler.is_dynamo_compiling() or x.is_inference() or source.is_inference()):
        x.noted = _Noted(Recipe(make, source), (x._version, source._version))  # type: ignore[attr-defined]
    return x


def recipe_of(x: Tensor) -> Recipe:
    """Return what to keep in place of `x`: its recipe, or itself where no op left one that still holds."""
    noted: _Noted | None = getattr(x, "noted", None)
    if noted is None or noted.versions != (x._version, noted.recipe.source._version):
        return Recipe(_itself, x)
    return noted.recipe


def _itself(x: Tensor) -> Tensor:
    return x
