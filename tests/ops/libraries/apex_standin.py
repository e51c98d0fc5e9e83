"""apex's compiled modules as their sources describe them, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def _check_norm(x: Tensor, normalized_shape: tuple[int, ...], *weights: Tensor) -> tuple[int, torch.dtype]:
    """Return the number of rows and the dtype of statistics."""
    assert x.is_contiguous(), "input must be contiguous"
    assert tuple(x.shape[x.dim() - len(normalized_shape) :]) == tuple(normalized_shape)
    for weight in weights:
        assert weight.is_contiguous(), "gamma must be contiguous"
        assert tuple(weight.shape) == tuple(normalized_shape)
        assert weight.dtype == x.dtype, "data_ptr of another dtype: 16-bit inputs have weights of their own dtype"
        assert weight.device == x.device
    assert x.dtype in (torch.float32, *HALF)
    rows = x.numel() // weights[0].numel()
    assert rows > 0, "a grid of no blocks cannot be launched"
    return rows, torch.float32


def rms_forward_affine(x: Tensor, normalized_shape: tuple[int, ...], gamma: Tensor, epsilon: float) -> list[Tensor]:
    rows, stats = _check_norm(x, normalized_shape, gamma)
    wide = x.to(stats).view(rows, -1)
    invvar = (wide.square().mean(1) + epsilon).rsqrt()
    output = gamma.flatten() * (wide * invvar[:, None]).to(x.dtype)
    return [output.view(x.shape), invvar]


def rms_backward_affine(
    dout: Tensor, invvar: Tensor, input_or_output: Tensor, normalized_shape: tuple[int, ...], gamma: Tensor,
    epsilon: float, memory_efficient: bool,
) -> list[Tensor]:  # fmt: skip
    rows, stats = _check_norm(input_or_output, normalized_shape, gamma)
    _check_backward(dout, input_or_output, memory_efficient, rows, stats, invvar)
    wide, dy = input_or_output.to(stats).view(rows, -1), dout.to(stats).view(rows, -1)
    normed = wide * invvar[:, None]
    dnormed = dy * gamma.flatten().to(stats)
    dx = invvar[:, None] * (dnormed - normed * (dnormed * normed).mean(1, keepdim=True))
    return [dx.view(dout.shape).to(dout.dtype), (dy * normed).sum(0).view(gamma.shape).to(gamma.dtype)]


def forward_affine(
    x: Tensor, normalized_shape: tuple[int, ...], gamma: Tensor, beta: Tensor, epsilon: float
) -> list[Tensor]:
    rows, stats = _check_norm(x, normalized_shape, gamma, beta)
    wide = x.to(stats).view(rows, -1)
    mean = wide.mean(1)
    invvar = (wide.var(1, correction=0) + epsilon).rsqrt()
    normed = (wide - mean[:, None]) * invvar[:, None]
    return [(gamma.flatten() * normed.to(x.dtype) + beta.flatten()).view(x.shape), mean, invvar]


def backward_affine(
    dout: Tensor, mean: Tensor, invvar: Tensor, input_or_output: Tensor, normalized_shape: tuple[int, ...],
    gamma: Tensor, beta: Tensor, epsilon: float, memory_efficient: bool,
) -> list[Tensor]:  # fmt: skip
    rows, stats = _check_norm(input_or_output, normalized_shape, gamma, beta)
    _check_backward(dout, input_or_output, memory_efficient, rows, stats, mean, invvar)
    wide, dy = input_or_output.to(stats).view(rows, -1), dout.to(stats).view(rows, -1)
    normed = (wide - mean[:, None]) * invvar[:, None]
    dnormed = dy * gamma.flatten().to(stats)
    centred = dnormed - dnormed.mean(1, keepdim=True)
    dx = invvar[:, None] * (centred - normed * (dnormed * normed).mean(1, keepdim=True))
    weights = [(dy * normed).sum(0), dy.sum(0)]
    return [dx.view(dout.shape).to(dout.dtype), *(w.view(gamma.shape).to(gamma.dtype) for w in weights)]


def _check_backward(
    dout: Tensor, x: Tensor, memory_efficient: bool, rows: int, stats: torch.dtype, *statistics: Tensor
) -> None:
    assert not memory_efficient, "that form is given the output, not the input"
    assert dout.is_contiguous(), "dout must be contiguous"
    assert dout.dtype == x.dtype
    assert dout.shape == x.shape
    for statistic in statistics:
        assert statistic.is_contiguous(), "invvar must be contiguous"
        assert statistic.shape == (rows,)
        assert statistic.dtype == stats


def _wgrad(x: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    for matrix in (x, d_output, d_weight):
        assert matrix.dim() == 2
        assert matrix.is_contiguous(), "raw memory is read, whatever the strides"
        assert matrix.device == x.device
    assert d_output.dtype == x.dtype
    assert d_weight.shape == (d_output.shape[1], x.shape[1])
    assert len(x) == len(d_output)
    d_weight.add_((d_output.float().t() @ x.float()).to(d_weight.dtype))


def wgrad_gemm_accum_fp32(x: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    assert x.dtype in (torch.float32, *HALF)
    assert d_weight.dtype == torch.float32
    _wgrad(x, d_output, d_weight)


def wgrad_gemm_accum_fp16(x: Tensor, d_output: Tensor, d_weight: Tensor) -> None:
    assert x.dtype in HALF
    assert d_weight.dtype == x.dtype
    _wgrad(x, d_output, d_weight)


def _check_lists(chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], depth: int) -> None:
    assert isinstance(chunk_size, int)
    assert noop_flag.dtype == torch.int32, "read as int"
    assert noop_flag.numel() == 1
    assert len(tensor_lists) == depth, "tensor_lists.size() != depth"
    assert len(tensor_lists[0]) > 0, "tensor_lists[0].size() is not > 0"
    for tensors in tensor_lists:
        for tensor, first in zip(tensors, tensor_lists[0], strict=True):
            assert tensor.is_contiguous(), "A tensor was not contiguous."
            assert tensor.device == tensor_lists[0][0].device == noop_flag.device
            assert tensor.numel() == first.numel(), "Size mismatch"


def multi_tensor_adam_capturable(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], lr: Tensor, beta1: float, beta2: float,
    epsilon: float, step: Tensor, mode: int, bias_correction: int, weight_decay: float, inv_scale: Tensor,
) -> None:  # fmt: skip
    _check_lists(chunk_size, noop_flag, tensor_lists, 4)
    assert lr.dtype == inv_scale.dtype == torch.float32
    assert step.dtype == torch.int32
    assert lr.device == step.device == inv_scale.device == noop_flag.device
    assert (mode, bias_correction) == (1, 1), "decoupled weight decay, corrected moments"
    if noop_flag.item() == 1:
        return
    b1, b2, rate, eps = (torch.tensor(value, dtype=torch.float32) for value in (beta1, beta2, lr.item(), epsilon))
    correction1, correction2 = (1 - b.double().pow(step.item()) for b in (b1, b2))
    for grad, param, first, second in zip(*tensor_lists, strict=True):
        assert first.dtype == second.dtype == torch.float32, "moments are read as float"
        assert grad.dtype == param.dtype
        grad.mul_(inv_scale)
        first.copy_(b1 * first + (1 - b1) * grad)
        second.copy_(b2 * second + (1 - b2) * grad * grad)
        denominator = (second / correction2.float()).sqrt() + eps
        param.sub_(rate * (first / correction1.float() / denominator + weight_decay * param))


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], per_tensor: bool | None
) -> tuple[Tensor, Tensor]:
    _check_lists(chunk_size, noop_flag, tensor_lists, 1)
    assert not per_tensor
    assert tensor_lists[0][0].dtype in (torch.float32, *HALF)
    total = sum(tensor.float().square().sum() for tensor in tensor_lists[0])
    assert isinstance(total, Tensor)
    return total.sqrt().view(1), torch.empty(0)
