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
_WIDE = (torch.float32, torch.float64)
_ALL = (*_WIDE, torch.bfloat16, torch.float16)

# What compiled kernels take: per op the dtypes on CPUs and on GPUs, and one of its operators.
_KERNELS: dict[str, tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...], str]] = {
    "activation": (_ALL, (), "activation"),
    "adamw": (_WIDE, (), "adamw_"),
    "attention": (_ALL, (), "attention"),
    "cross_entropy": (_WIDE, (), "ce_stats"),
    "dropout": (_WIDE, _ALL, "dropout"),
    "layer_norm": (_ALL, (), "layer_norm"),
    "normal": (_WIDE, _WIDE, "fill_normal_"),
    "rms_norm": (_ALL, (), "rms_norm"),
    "rope": (_WIDE, (), "rope"),
    "softmax": (_ALL, (), "masked_softmax"),
}
OPS = tuple(_KERNELS)
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
    probe = torch.empty(0)
    return {op: "cpu" if native(op, probe) else "reference" for op in sorted(OPS)}


def native(op: str, x: Tensor) -> bool:
    """Return whether a compiled kernel of `op` serves tensors of x's device and dtype."""
    on_cpu, on_gpu, operator = _KERNELS[op]
    if x.dtype not in (on_cpu if x.is_cpu else on_gpu if x.is_cuda else ()):
        return False
    return _selected != "reference" and load_error() is None and _is_built(operator, "CPU" if x.is_cpu else "CUDA")


@functools.cache
def _is_built(operator: str, device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"trimaran::{operator}", device)
