"""Every compiled operator on fake tensors gives the shapes, dtypes and strides that it gives on real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.ops import backend
from engine.ops.activation import gelu, swiglu
from engine.ops.adafactor import means_of_squares
from engine.ops.adamw import adamw_, sum_of_squares
from engine.ops.attention import attention
from engine.ops.cross_entropy import ce_grad_, ce_stats
from engine.ops.dropout import add_dropout, dropout
from engine.ops.key_ranges import KeyRanges
from engine.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from engine.ops.philox import fill_normal_, fill_uniform_
from engine.ops.rope import rope_, rope_tables
from engine.ops.softmax import masked_softmax
from tests.fake_cuda import run_fake_cuda


def _swiglu() -> Any:
    return swiglu(torch.ones(2, 3, 8))


def _gelu() -> Any:
    return gelu(torch.ones(2, 3, 8), torch.ones(8))


def _rms_norm() -> Any:
    return rms_norm(torch.ones(2, 3, 8), torch.ones(8), 1e-5)


def _add_rms_norm() -> Any:
    return add_rms_norm(torch.ones(2, 3, 8), torch.ones(2, 3, 8), torch.ones(8), 1e-5)


def _layer_norm() -> Any:
    return layer_norm(torch.ones(2, 3, 8), torch.ones(8), torch.ones(8), 1e-5)


def _add_layer_norm() -> Any:
    return add_layer_norm(torch.ones(2, 3, 8), torch.ones(2, 3, 8), torch.ones(8), torch.ones(8), 1e-5)


def _rope() -> Any:
    return rope_(torch.ones(2, 3, 6, 8), *rope_tables(torch.arange(3), 8, 1e4), 4)


def _rope_in_place() -> Any:
    return rope_(torch.ones(2, 3, 6 * 8), *rope_tables(torch.arange(3), 4, 1e4), 4, head_dim=8)


def _dropout() -> Any:
    return dropout(torch.ones(2, 3, 8), 0.1, 2**63 + 1, torch.ones(2, 3, dtype=torch.int64), 8)


def _add_dropout() -> Any:
    x, rows = torch.ones(2, 3, 8), torch.ones(2, 3, dtype=torch.int64)
    return add_dropout(x, x, 0.1, 7, rows, 8, bias_f=torch.ones(8))


def _cross_entropy() -> Any:
    logits, targets = torch.ones(5, 11), torch.ones(5, dtype=torch.int64)
    stats = ce_stats(logits, targets, 0)
    return ce_grad_(logits, targets, 0, *stats[:3], vocab=11, smoothing=0.1, z_loss=0.1), *stats


def _adamw() -> Any:
    flat, one = [torch.ones(10) for _ in range(4)], torch.ones(())
    adamw_(*flat, lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.1, step=one, grad_scale=one, keep=one)
    return *flat, sum_of_squares(flat[0]), *means_of_squares(torch.ones(3, 4))


def _attention() -> Any:
    qkv = torch.ones(2, 5, 4, 8, requires_grad=True)
    out = attention(qkv, 2, 1, KeyRanges.causal(5, qkv.device))
    return [x.contiguous() for x in (out, *torch.autograd.grad(out, qkv, torch.ones_like(out)))]


def _softmax() -> Any:
    scores = torch.ones(2, 3, 4, 4, requires_grad=True)
    probs = masked_softmax(scores, KeyRanges.causal(4, scores.device))
    return probs, *torch.autograd.grad(probs, scores, torch.ones_like(probs))


def _normal() -> Any:
    return fill_normal_(torch.ones(4, 5), 7, (8, 5), (2, 0), 1.0)


def _uniform() -> Any:
    return fill_uniform_(torch.ones(4, 5), 7, (8, 5), (2, 0), 1.0, 2.0)


CALLS = [
    *(_swiglu, _gelu, _rms_norm, _add_rms_norm, _layer_norm, _add_layer_norm, _rope, _rope_in_place, _dropout),
    *(_add_dropout, _cross_entropy, _adamw, _attention, _softmax, _normal, _uniform),
]


def outline(tensors: Any, device: str = "cpu") -> list[Any]:
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    assert all(tensor.device.type == device for tensor in tensors)
    return [[list(tensor.shape), str(tensor.dtype), list(tensor.stride())] for tensor in tensors]


def outlines_on_cuda() -> list[Any]:
    with torch.device("cuda"):
        return [outline(call(), "cuda") for call in CALLS]


@pytest.mark.parametrize("call", CALLS)
def test_shapes(call: Callable[[], Any], each_backend: str) -> None:
    real = outline(call())
    with FakeTensorMode():
        assert outline(call()) == real


def _norm_operators() -> Any:
    x, w, ops = torch.ones(2, 3, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16), torch.ops.trimaran
    y, total, rstd = ops.rms_norm(x, x, w, 1e-5)
    z, _, mean, rstd_z = ops.layer_norm(x, None, w, w, 1e-5)
    return [
        y, total, rstd, z, mean, rstd_z,
        *ops.rms_norm_backward(y, total, x, w, rstd), *ops.layer_norm_backward(z, None, x, w, mean, rstd_z),
    ]  # fmt: skip


def _activation_operators() -> Any:
    x, bias, ops = torch.ones(2, 3, 8).half(), torch.ones(8).half(), torch.ops.trimaran
    y = ops.activation(x, bias, "swiglu")
    return y, *ops.activation_backward(y, x, bias, "swiglu"), *ops.activation_backward(y, x, None, "swiglu")


@pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")
@pytest.mark.parametrize("call", [_norm_operators, _activation_operators])
def test_what_operators_hand_from_forward_to_backward(call: Callable[[], Any]) -> None:
    real = outline(call())
    with FakeTensorMode():
        assert outline(call()) == real


def test_fake_cuda_tensors_give_the_same() -> None:
    assert run_fake_cuda(outlines_on_cuda, world=1) == [outline(call()) for call in CALLS]


def test_backward() -> None:
    backend.select("auto")
    with FakeTensorMode():
        x, w = torch.ones(2, 3, 4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
        y = rope_(rms_norm(x, w, 1e-5), *rope_tables(torch.arange(3), 8, 1e4), 4)
        dropout(swiglu(y), 0.1, 1, torch.ones(2, 3, 4, dtype=torch.int64), 4).sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
