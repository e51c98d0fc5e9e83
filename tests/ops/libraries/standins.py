"""Stand-ins for the modules of flash-attn and apex: their names, signatures and demands, computed by plain torch.

Signatures and checks follow flash-attn 2.8.4 (commit 0251105a) and apex 6424da3b, from their sources and
documentation. What a library leaves unchecked but needs (it reads raw memory) is checked here.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from engine.ops import backend
from engine.ops.libraries import flash
from engine.ops.libraries.offer import import_error
from tests.ops.libraries import apex_standin, flash_standin


def modules() -> dict[str, ModuleType]:
    """Return the stand-ins by the names under which the libraries import them."""
    attention = {
        "flash_attn_func": flash_standin.flash_attn_func,
        "flash_attn_varlen_func": flash_standin.flash_attn_varlen_func,
    }
    contents: dict[str, dict[str, Any]] = {
        "flash_attn": {"__version__": "2.8.4", **attention},
        "flash_attn.ops": {},
        "flash_attn.ops.triton": {},
        "flash_attn.ops.triton.cross_entropy": {"cross_entropy_loss": flash_standin.cross_entropy_loss},
        "flash_attn.ops.triton.rotary": {"apply_rotary": flash_standin.apply_rotary},
        "fused_layer_norm_cuda": {
            "forward_affine": apex_standin.forward_affine,
            "backward_affine": apex_standin.backward_affine,
            "rms_forward_affine": apex_standin.rms_forward_affine,
            "rms_backward_affine": apex_standin.rms_backward_affine,
        },
        "fused_weight_gradient_mlp_cuda": {
            "wgrad_gemm_accum_fp32": apex_standin.wgrad_gemm_accum_fp32,
            "wgrad_gemm_accum_fp16": apex_standin.wgrad_gemm_accum_fp16,
        },
        "amp_C": {
            "multi_tensor_adam_capturable": apex_standin.multi_tensor_adam_capturable,
            "multi_tensor_l2norm": apex_standin.multi_tensor_l2norm,
        },
    }
    made = {}
    for name, attributes in contents.items():
        made[name] = ModuleType(name)
        made[name].__spec__ = ModuleSpec(name, None)
        vars(made[name]).update(attributes)
    return made


def install(monkeypatch: pytest.MonkeyPatch, *, gpu: bool = True) -> dict[str, ModuleType]:
    """Make the stand-ins importable, and with `gpu` let CPU tensors pass for tensors on an H100."""
    made = modules()
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    if gpu:
        monkeypatch.setattr(backend, "_device_of", lambda x: "cuda")
        monkeypatch.setattr(flash, "capability", lambda: (9, 0))
    forget()
    return made


def forget() -> None:
    """Drop what was found out about installed libraries, and what was chosen by it."""
    import_error.cache_clear()
    backend.select("auto")
