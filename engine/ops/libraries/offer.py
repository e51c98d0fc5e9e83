"""What a library offers for an op, and whether this installation of it keeps the promise."""

from __future__ import annotations

import functools
import importlib
from typing import NamedTuple

import torch

FLOAT = (torch.float32,)
HALF = (torch.bfloat16, torch.float16)


class Offer(NamedTuple):
    """The functions of `module` that serve an op on CUDA tensors of `dtypes`.

    Tensors of the dtypes `asked` are served too, but only where a user asks for this library: `caution` says why.
    """

    module: str
    functions: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    asked: tuple[torch.dtype, ...] = ()
    caution: str = ""


@functools.cache
def import_error(module: str, functions: tuple[str, ...]) -> str | None:
    """Import `module` once; return why its `functions` cannot be called, or None when they can."""
    try:
        found = importlib.import_module(module)
    except Exception as error:  # builds for another torch, CUDA or driver raise anything
        return f"`import {module}` failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    missing = [name for name in functions if not hasattr(found, name)]
    return f"the installed {module} lacks {', '.join(missing)}; a newer version is needed" if missing else None


def capability() -> tuple[int, int]:
    """Return the compute capability of the current GPU, (0, 0) without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
