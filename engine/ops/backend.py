"""Which implementation runs: the compiled kernels of `engine._C`, or the plain torch references.

Kernels take float32 and float64 tensors on the CPU, and, where the extension was built for CUDA, random numbers on
GPUs; everything else runs on the reference. Nothing is imported before the first use, and an installation without
the extension works.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from engine.errors import ConfigError, did_you_mean

BACKENDS = ("auto", "reference", "cpu")
OPS = ("adamw", "cross_entropy", "dropout", "gelu", "layer_norm", "normal", "rms_norm", "rope", "swiglu")
_KERNELS = frozenset(OPS) - {"gelu", "layer_norm"}  # torch's own CPU kernels of these are already fused
_DTYPES = (torch.float32, torch.float64)
_selected = "auto"


@functools.cache
def load_error() -> str | None:
    """Import the extension once; return why it is not available, or None when it is."""
    try:
        importlib.import_module("engine._C")
    except ImportError as error:
        return str(error)
    importlib.import_module("engine.ops.fakes")
    return None


def select(backend: str) -> None:
    """Choose the backend of this process; raise ConfigError when it is unknown or cannot be had."""
    global _selected
    if backend not in BACKENDS:
        raise ConfigError(f"ops.backend={backend} is unknown.{did_you_mean(backend, BACKENDS)}")
    if backend == "cpu" and load_error() is not None:
        raise ConfigError(
            f"ops.backend=cpu, but the extension cannot be loaded ({load_error()}); build it with "
            "`python setup.py build_ext --inplace`, or write ops.backend=auto."
        )
    _selected = backend


def active() -> dict[str, str]:
    """Return what each op runs on for float32 CPU tensors, to be printed at start."""
    fused = _selected != "reference" and load_error() is None
    return {op: "cpu" if fused and op in _KERNELS else "reference" for op in OPS}


def fused(x: Tensor) -> bool:
    """Return whether a compiled CPU kernel serves `x`."""
    return x.is_cpu and x.dtype in _DTYPES and _selected != "reference" and load_error() is None


def drawn_on_gpu(x: Tensor, op: str, *dtypes: torch.dtype) -> bool:
    """Return whether the CUDA kernel of `op`, which takes `dtypes`, serves `x`."""
    return x.is_cuda and x.dtype in dtypes and _selected != "reference" and load_error() is None and _on_cuda(op)


@functools.cache
def _on_cuda(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"trimaran::{op}", "CUDA")
