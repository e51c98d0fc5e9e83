"""One dispatch: which implementation of an op runs, per device and dtype, and why it is that one.

`reference` is plain torch, `cpu` and `cuda` are the compiled kernels of `engine._C` on that device, `apex` and `flash`
are libraries (`engine.ops.libraries`). `auto` takes the first of library, own kernel and reference that can serve;
naming a backend puts it first, before our kernel and the reference. Nothing is imported before the first use, and
an installation without the extension works. Neither libraries nor our CUDA kernels have yet been run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from engine.device import DTYPES
from engine.errors import ConfigError, did_you_mean
from engine.ops.libraries import apex, flash
from engine.ops.libraries.offer import Offer

_WIDE = (torch.float32, torch.float64)
_ALL = (*_WIDE, torch.bfloat16, torch.float16)

# What compiled kernels take: per op the dtypes on CPUs and on GPUs, and one of its operators.
_KERNELS: dict[str, tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...], str]] = {
    "activation": (_ALL, _ALL, "activation"),
    "adafactor": (_WIDE, _WIDE, "means_of_squares"),
    "adamw": (_WIDE, _WIDE, "adamw_"),
    "attention": (_ALL, (), "attention"),
    "cross_entropy": (_ALL, _ALL, "ce_stats"),
    "dropout": (_ALL, _ALL, "dropout"),
    "layer_norm": (_ALL, _ALL, "layer_norm"),
    "normal": (_WIDE, _WIDE, "fill_normal_"),
    "rms_norm": (_ALL, _ALL, "rms_norm"),
    "rope": (_ALL, _ALL, "rope_"),
    "softmax": (_ALL, _ALL, "masked_softmax"),
    "uniform": (_WIDE, _WIDE, "fill_uniform_"),
}


class _Library(Protocol):
    @property
    def OFFERS(self) -> dict[str, Offer]: ...

    def why_not(self, op: str) -> str | None: ...

    def fits(self, op: str, x: Tensor) -> bool: ...


_LIBRARIES: dict[str, _Library] = {"flash": flash, "apex": apex}  # no op is offered by both
# These see tensors of the main dtype: float32 where parameters have 16 bits.
_MAIN = ("adafactor", "adamw", "normal", "uniform")

BACKENDS = ("auto", "reference", "cpu", "cuda", *sorted(_LIBRARIES))
OPS = tuple(sorted({*_KERNELS, *apex.OFFERS, *flash.OFFERS}))

_default = "auto"
_overrides: dict[str, str] = {}


# -- setting -------------------------------------------------------------------------------------------------


def check(
    default: str, overrides: Mapping[str, str], device_type: str = "cpu", dtype: torch.dtype | None = None
) -> None:
    """Raise ConfigError, one line with the reason, for what `select` refuses on `device_type` (cpu | cuda).

    An override must serve parameters of `dtype` (None: not known). A default must be available for every op that
    has it; ops and dtypes that it does not know run on our kernel or the reference.
    """
    if default not in BACKENDS:
        raise ConfigError(f"ops.backend={default} is unknown.{did_you_mean(default, BACKENDS)}")
    for op, name in overrides.items():
        key = f"ops.overrides.{op}={name}"
        if op not in OPS:
            raise ConfigError(f"{key}: there is no op called {op}.{did_you_mean(op, OPS)}")
        if name not in BACKENDS:
            raise ConfigError(f"{key} is unknown.{did_you_mean(str(name), BACKENDS)}")
        if name != "auto" and name not in _backends(op):
            raise ConfigError(f"{key}, but {op} has no such backend; choose from: {', '.join(_backends(op))}.")
        seen = None if dtype is None else _seen(op, dtype)
        reason = None if name == "auto" else _why_not(op, name, device_type, seen)
        if reason is not None:
            raise ConfigError(f"{key}, but {reason}; change that, or write ops.overrides.{op}=auto.")
    for op in OPS:
        if default != "auto" and default in _backends(op) and op not in overrides:
            reason = _why_not(op, default, device_type)
            if reason is not None:
                raise ConfigError(f"ops.backend={default}, but {reason}; change that, or write ops.backend=auto.")


def select(default: str = "auto", overrides: Mapping[str, str] | None = None, device_type: str = "cpu") -> None:
    """Set the backends of this process: `default` for all ops but those named in `overrides`; raises as `check`."""
    global _default, _overrides
    check(default, overrides or {}, device_type)
    _default, _overrides = default, dict(overrides or {})
    _first_usable.cache_clear()


# -- choice --------------------------------------------------------------------------------------------------


def choose(op: str, x: Tensor) -> str:
    """Return what runs `op` on `x` (the tensor its kernels read): "reference", "native", "apex" or "flash"."""
    wanted = _overrides.get(op, _default)
    name = _pick(op, wanted, _device_of(x), x.dtype)
    if name in _LIBRARIES and not _LIBRARIES[name].fits(op, x):
        name = _pick(op, wanted, _device_of(x), x.dtype, libraries=False)
    return "native" if name in ("cpu", "cuda") else name


def native(op: str, x: Tensor) -> bool:
    """Return whether our compiled kernel runs `op` on tensors of x's device and dtype."""
    return choose(op, x) == "native"


def _device_of(x: Tensor) -> str:
    if x.is_cpu:  # x.device is an object made anew at each call
        return "cpu"
    return "cuda" if x.is_cuda else x.device.type


def _pick(op: str, wanted: str, device_type: str, dtype: torch.dtype, libraries: bool = True) -> str:
    return _first_usable(op, wanted, device_type, dtype, libraries)


# torch.compile calls it for its answer and does not look inside, where modules are imported. What the decorator
# torch.compiler.assume_constant_result does, which would import the compiler at each start.
_pick._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _first_usable(op: str, wanted: str, device_type: str, dtype: torch.dtype, libraries: bool) -> str:
    names = _backends(op) if wanted == "auto" else (wanted, device_type, "reference")
    for name in names if wanted != "reference" else ():
        if (libraries or name not in _LIBRARIES) and _why_not(op, name, device_type, dtype, wanted == "auto") is None:
            return name
    return "reference"


def _backends(op: str) -> tuple[str, ...]:
    """Return the backends that exist for `op`, in the order in which auto wants them."""
    libraries = [name for name, library in _LIBRARIES.items() if op in library.OFFERS]
    on_cpu, on_gpu, _ = _KERNELS.get(op, ((), (), ""))
    return (*libraries, *(["cpu"] if on_cpu else []), *(["cuda"] if on_gpu else []), "reference")


def _why_not(
    op: str, name: str, device_type: str, dtype: torch.dtype | None = None, unasked: bool = False
) -> str | None:
    """Return why backend `name` does not run `op` on this device and dtype (None: any), or None when it can."""
    if name == "reference":
        return None
    if name not in _backends(op):
        return f"there is no {name} kernel of it"
    if device_type != ("cpu" if name == "cpu" else "cuda"):
        return f"{name} does not run on a {device_type} device"
    if name not in _LIBRARIES:
        on_cpu, on_gpu, operator = _KERNELS[op]
        return _wrong_dtype(name, on_cpu if name == "cpu" else on_gpu, dtype) or _why_no_kernel(operator, name)
    offer = _LIBRARIES[name].OFFERS[op]
    reason = _wrong_dtype(name, (*offer.dtypes, *offer.asked), dtype) or _LIBRARIES[name].why_not(op)
    return offer.caution if reason is None and unasked and dtype in offer.asked else reason


def _wrong_dtype(name: str, dtypes: Iterable[torch.dtype], dtype: torch.dtype | None) -> str | None:
    if dtype is None or dtype in dtypes:
        return None
    return f"{name} takes {', '.join(_short(d) for d in dtypes)}, not {_short(dtype)}"


def _short(dtype: torch.dtype) -> str:
    return next((short for short, known in DTYPES.items() if known == dtype), str(dtype))


# -- our kernels ---------------------------------------------------------------------------------------------


@functools.cache
def load_error() -> str | None:
    """Import the extension once; return why it is not available, or None when it is."""
    try:
        importlib.import_module("engine._C")
    except ImportError as error:
        return str(error)
    importlib.import_module("engine.ops.fakes")
    return None


def _why_no_kernel(operator: str, name: str) -> str | None:
    error = load_error()
    if error is not None:
        return f"the extension cannot be loaded ({error}); build it with `python setup.py build_ext --inplace`"
    if not _is_built(operator, name.upper()):
        return f"the extension was built without its {name} kernels" + (
            "; build it again where torch has CUDA and nvcc is found" if name == "cuda" else "; build it again"
        )
    return None


@functools.cache
def _is_built(operator: str, device: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"trimaran::{operator}", device)
    except RuntimeError:  # an older build, which does not know the operator
        return False


# -- what is active ------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What runs `op`, and for each backend that auto would rather take: why it is not that one."""

    op: str
    backend: str
    others: dict[str, str]


def table(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Row]:
    """Return a row per op, for parameters of `dtype` on `device_type`."""
    return [_row(op, device_type, _seen(op, dtype)) for op in OPS]


def active(device_type: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Return what each op runs on: the first two columns of `table`."""
    return {row.op: row.backend for row in table(device_type, dtype)}


def describe(device_type: str, dtype: torch.dtype) -> list[str]:
    """Return `table` in few lines: the ops of each backend, then for each reason the ops that could not have one."""
    running: dict[str, list[str]] = {}
    missing: dict[tuple[str, str], list[str]] = {}
    for row in table(device_type, dtype):
        running.setdefault(row.backend, []).append(row.op)
        for other in row.others.items():
            missing.setdefault(other, []).append(row.op)
    return [
        *(f"kernels {name}: {', '.join(ops)}" for name, ops in running.items()),
        *(f"kernels not {name} for {', '.join(ops)}: {reason}" for (name, reason), ops in missing.items()),
    ]


def _row(op: str, device_type: str, dtype: torch.dtype) -> Row:
    wanted = _overrides.get(op, _default)
    picked = _pick(op, wanted, device_type, dtype)
    usable = [name for name in _backends(op) if (name == "cpu") == (device_type == "cpu") or name == "reference"]
    others = {}
    for name in usable[: usable.index(picked)]:
        reason = _why_not(op, name, device_type, dtype, unasked=wanted == "auto")
        others[name] = reason or f"{wanted} was asked for"
    return Row(op, picked, others)


def _seen(op: str, dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if op in _MAIN else dtype
