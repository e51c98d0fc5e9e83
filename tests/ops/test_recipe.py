"""What a linear layer keeps of its input: the source of a norm or an activation, never their output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from engine.mesh import Axis
from engine.ops.activation import gelu, swiglu
from engine.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from engine.ops.recipe import recipe_of
from engine.parallel.linear import TensorParallel, column_linear
from tests.ops.witness import draw

WEIGHT, BIAS = 1 + draw(1, 8, scale=0.1), draw(2, 8)
OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "rms_norm": lambda x: rms_norm(x, WEIGHT, 1e-5),
    "layer_norm": lambda x: layer_norm(x, WEIGHT, BIAS, 1e-5),
    "add_rms_norm": lambda x: add_rms_norm(x, x, WEIGHT, 1e-5)[0],
    "add_layer_norm": lambda x: add_layer_norm(x, x, WEIGHT, BIAS, 1e-5)[0],
    "swiglu": lambda x: swiglu(x, BIAS),
    "gelu": lambda x: gelu(x),
}


@pytest.mark.parametrize("name", OPS)
def test_recipes_give_the_same_bits(name: str, each_backend: str) -> None:
    y = OPS[name](draw(3, 2, 3, 8))
    make, source = recipe_of(y)
    assert source is not y
    assert torch.equal(make(source), y)


def test_a_tensor_without_a_recipe_is_kept_itself() -> None:
    x = draw(3, 2, 3, 8)
    make, source = recipe_of(x)
    assert source is x
    assert make(source) is x


@pytest.mark.parametrize("name", OPS)
def test_a_linear_layer_keeps_the_source(name: str) -> None:
    """The output of the op is freed after the forward pass, and the weight's gradient is right all the same."""
    tp = TensorParallel(Axis("tp", 1, 0, None, (0,)), False, torch.float64, torch.device("cpu"))
    x = draw(3, 2, 3, 8).requires_grad_()
    width = OPS[name](x).shape[-1]
    weight = nn.Parameter(draw(4, 5, width))
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = OPS[name](x)
        z = column_linear(y, weight, None, tp)
    assert y.data_ptr() not in kept
    z.backward(torch.ones_like(z))
    assert weight.grad is not None
    expected = torch.ones(6, 5, dtype=torch.float64).t() @ y.detach().view(6, width)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("written", ["output", "source"])
def test_what_is_written_to_is_kept_itself(written: str) -> None:
    """A recipe holds until somebody overwrites what it gives or what it starts from: then it is forgotten."""
    x = draw(3, 2, 3, 8)
    y = rms_norm(x, WEIGHT, 1e-5)
    assert recipe_of(y).source is x
    (y if written == "output" else x).mul_(2)
    make, source = recipe_of(y)
    assert source is y
    assert make(source) is y


def test_inference_tensors_have_no_recipe() -> None:
    with torch.inference_mode():
        x = draw(3, 2, 3, 8)
        y = rms_norm(x, WEIGHT, 1e-5)
    assert recipe_of(y).source is y
    assert recipe_of(rms_norm(x, WEIGHT, 1e-5)).source is not x
