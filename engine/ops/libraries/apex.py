"""NVIDIA's apex (github.com/NVIDIA/apex, September 2023 or newer): norms, weight gradients, multi-tensor AdamW.

Its compiled modules are called directly, so its Python package is never imported. Held to the reference by
stand-ins with the library's signatures and demands; not yet run on a GPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from engine.ops.libraries.offer import FLOAT, HALF, Offer, import_error

_ROUNDS = "apex rounds the gradient of 16-bit norm weights to 16 bits; it serves where it is asked for"
OFFERS = {
    "rms_norm": Offer("fused_layer_norm_cuda", ("rms_forward_affine", "rms_backward_affine"), FLOAT, HALF, _ROUNDS),
    "layer_norm": Offer("fused_layer_norm_cuda", ("forward_affine", "backward_affine"), FLOAT, HALF, _ROUNDS),
    "weight_grad": Offer(
        "fused_weight_gradient_mlp_cuda", ("wgrad_gemm_accum_fp32", "wgrad_gemm_accum_fp16"), HALF, FLOAT,
        "apex's float32 product is the one of cuBLAS that torch calls too; it serves where it is asked for",
    ),
    "adamw": Offer("amp_C", ("multi_tensor_adam_capturable", "multi_tensor_l2norm"), FLOAT),
}  # fmt: skip
_INT32 = 2**31  # its kernels count elements in 32 bits
_CHUNK = 2048 * 32  # elements that one block works on, as in apex.multi_tensor_apply
_ADAMW = 1  # mode: decoupled weight decay
_FROM_INPUT = (0.0, False)  # end of a norm's backward call: eps is read only where the input is rebuilt from the output


def why_not(op: str) -> str | None:
    """Return why the installed apex cannot serve `op`, or None when it can."""
    offer = OFFERS[op]
    if importlib.util.find_spec(offer.module) is None:
        return _why_incomplete(offer.module)
    return import_error(offer.module, offer.functions)


def _why_incomplete(module: str) -> str:
    """Say what is wrong with an installation that lacks a compiled module: PyPI's apex has nothing to do with it."""
    package = importlib.util.find_spec("apex")
    if package is None:
        return "NVIDIA's apex is not installed"
    if not any((Path(folder) / "normalization").is_dir() for folder in package.submodule_search_locations or ()):
        return "the installed apex is PyPI's unrelated package of that name; install github.com/NVIDIA/apex instead"
    return f"apex was built without its module {module}; build it with APEX_CPP_EXT=1 APEX_CUDA_EXT=1"


def fits(op: str, x: Tensor) -> bool:
    """Return whether the library takes tensors of x's shape: the input of a norm or linear layer, flat parameters."""
    return 0 < x.numel() < _INT32


# -- norms ---------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return y [..., h] and the float32 1/rms [..., 1] of x [..., h]; weight [h] of x's dtype.

    The normed row is rounded to x's dtype before it is multiplied by the weight, and then once more.
    """
    import fused_layer_norm_cuda

    y, rstd = fused_layer_norm_cuda.rms_forward_affine(x.contiguous(), weight.shape, weight.contiguous(), eps)
    return y, rstd.view(*x.shape[:-1], 1)


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return dx and dw (summed in float32, rounded to weight's dtype) for what `rms_norm` was given and returned."""
    import fused_layer_norm_cuda

    dx, dw = fused_layer_norm_cuda.rms_backward_affine(
        dy.contiguous(), rstd.flatten(), x.contiguous(), weight.shape, weight.contiguous(), *_FROM_INPUT
    )
    return dx, dw


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return y [..., h] and the float32 mean and 1/std [..., 1] of x [..., h]; weight and bias [h] of x's dtype."""
    import fused_layer_norm_cuda

    y, mean, rstd = fused_layer_norm_cuda.forward_affine(
        x.contiguous(), weight.shape, weight.contiguous(), _bias(weight, bias), eps
    )
    rows = (*x.shape[:-1], 1)
    return y, mean.view(rows), rstd.view(rows)


def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return dx, dw and db (None without a bias) for what `layer_norm` was given and returned."""
    import fused_layer_norm_cuda

    dx, dw, db = fused_layer_norm_cuda.backward_affine(
        dy.contiguous(), mean.flatten(), rstd.flatten(), x.contiguous(), weight.shape, weight.contiguous(),
        _bias(weight, bias), *_FROM_INPUT,
    )  # fmt: skip
    return dx, dw, None if bias is None else db


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.zeros_like(weight) if bias is None else bias.contiguous()


# -- linear layers and the optimizer -------------------------------------------------------------------------


def add_weight_grad_(main_grad_oi: Tensor, dy: Tensor, x: Tensor) -> None:
    """Add dy^T x to `main_grad_oi` in the matrix product itself, for dy [..., o] and x [..., i] of one dtype.

    `main_grad_oi` is contiguous, float32, or of the 16-bit dtype of x (then each sum is rounded to it).
    """
    import fused_weight_gradient_mlp_cuda as library

    if not main_grad_oi.is_contiguous():
        raise ValueError("apex adds weight gradients to contiguous tensors only")
    add = library.wgrad_gemm_accum_fp16 if main_grad_oi.dtype in HALF else library.wgrad_gemm_accum_fp32
    # It reads raw memory, whatever the strides.
    add(x.reshape(-1, x.shape[-1]).contiguous(), dy.reshape(-1, dy.shape[-1]).contiguous(), main_grad_oi)


def adamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: Tensor,
    grad_scale: Tensor,
    keep: Tensor,
) -> None:
    """`engine.ops.adamw.adamw_` for float32, except that `grad` is left multiplied by `grad_scale`.

    Bias corrections are float32 there, so the first steps agree to about 1e-5 only. Nothing is read by the host.
    """
    import amp_C

    skip = (keep <= 0).to(torch.int32).view(1)
    rate = torch.full((1,), lr, dtype=torch.float32, device=param.device)
    amp_C.multi_tensor_adam_capturable(
        _CHUNK, skip, [[grad], [param], [exp_avg], [exp_avg_sq]], rate, beta1, beta2, eps,
        step.to(torch.int32).view(1), _ADAMW, 1, weight_decay, grad_scale.float().view(1),
    )  # fmt: skip


def sum_of_squares(flat: Tensor) -> Tensor:
    """Return the sum of squares of a flat float32 tensor as a 0-dim float64; it is summed in float32."""
    import amp_C

    overflow = torch.zeros(1, dtype=torch.int32, device=flat.device)
    norm, _ = amp_C.multi_tensor_l2norm(_CHUNK, overflow, [[flat]], False)
    return norm.double().square().squeeze(0)
