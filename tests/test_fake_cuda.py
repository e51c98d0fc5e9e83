"""Fake CUDA: everything a training step does to autograd works on tensors without data, for any rank."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.fake_cuda import fake_world, real_tensors, run_fake_cuda

WORLD = 512


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class MainGradLinear(torch.autograd.Function):
    """x W^T whose backward adds dW into `weight.main_grad` in place, as the engine's linear does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight  # itself: under checkpoint, saved tensors come back detached, without main_grad
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        weight.main_grad.addmm_(grads[0].t().to(weight.main_grad.dtype), x.to(weight.main_grad.dtype))
        weight.grad_ready()
        return grads[0] @ weight, None


def parameter(*shape: int, device: str = "cuda", dtype: torch.dtype = torch.float32) -> Any:
    return torch.nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))


def traits(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.device), str(tensor.dtype), list(tensor.shape)]


def place() -> dict[str, Any]:
    print("bodies may print")
    launched = {key: os.environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    return {"rank": dist.get_rank(), "world": dist.get_world_size(), "cuda": torch.cuda.is_available(), **launched}


def test_a_body_is_the_rank_it_asked_for() -> None:
    launched = {"RANK": "37", "WORLD_SIZE": "512", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}
    expected = {"rank": 37, "world": WORLD, "cuda": torch.cuda.is_available(), **launched}
    assert run_fake_cuda(place, rank=37, world=WORLD) == expected
    assert run_fake_cuda("tests.test_fake_cuda:place")["world"] == 1
    assert not dist.is_initialized()


def linear(device: str) -> list[Any]:
    x, weight, bias = parameter(4, 6, device=device), parameter(8, 6, device=device), parameter(8, device=device)
    y = F.linear(x, weight, bias)
    y.square().mean().backward()
    return [traits(t) for t in (y, x.grad, weight.grad, bias.grad)]


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:7"])
def test_linear_runs_forward_and_backward_on_any_device_of_the_node(device: str) -> None:
    shapes = [[4, 8], [4, 6], [8, 6], [8]]
    assert run_fake_cuda(linear, device) == [[device, "torch.float32", shape] for shape in shapes]


def attention(dtype: str, kv_heads: int, masked: bool) -> dict[str, Any]:
    q, k, v = (parameter(2, heads, 16, 64, dtype=getattr(torch, dtype)) for heads in (8, kv_heads, kv_heads))
    mask = torch.ones(2, 1, 16, 16, device="cuda", dtype=torch.bool) if masked else None
    with Operators() as seen:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, enable_gqa=kv_heads != 8)
        out.sum().backward()
    return {"operators": seen.names, "traits": [traits(t) for t in (out, q.grad, v.grad)]}


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "masked", "operator"),
    [
        ("bfloat16", 8, False, "_scaled_dot_product_flash_attention"),
        ("bfloat16", 2, False, "_scaled_dot_product_flash_attention"),
        ("bfloat16", 8, True, "_scaled_dot_product_efficient_attention"),
        ("float32", 8, False, "_scaled_dot_product_efficient_attention"),
        ("float64", 8, False, "bmm"),
    ],
)
def test_attention_takes_the_kernel_that_a_gpu_would(dtype: str, kv_heads: int, masked: bool, operator: str) -> None:
    result = run_fake_cuda(attention, dtype, kv_heads, masked)
    assert operator in result["operators"]
    assert (f"{operator}_backward" in result["operators"]) == (operator != "bmm")
    assert ("bmm" in result["operators"]) == (operator == "bmm")
    shapes = [[2, heads, 16, 64] for heads in (8, 8, kv_heads)]
    assert result["traits"] == [["cuda:0", f"torch.{dtype}", shape] for shape in shapes]


def main_grad() -> dict[str, Any]:
    x, weight, ready = parameter(4, 6, dtype=torch.bfloat16), parameter(8, 6, dtype=torch.bfloat16), []
    weight.main_grad, weight.grad_ready = torch.zeros(8, 6, device="cuda"), lambda: ready.append("weight")
    y = MainGradLinear.apply(x, weight)
    version = weight.main_grad._version
    y.sum().backward()
    writes = weight.main_grad._version - version
    return {"x": traits(x.grad), "none": weight.grad is None, "ready": ready, "writes": writes}


def test_a_custom_function_accumulates_in_place_inside_backward() -> None:
    expected = {"x": ["cuda:0", "torch.bfloat16", [4, 6]], "none": True, "ready": ["weight"], "writes": 1}
    assert run_fake_cuda(main_grad) == expected


def recomputed(segments: int) -> dict[str, Any]:
    weights, calls = [parameter(6, 6) for _ in range(segments)], []

    def block(x: torch.Tensor, index: int) -> torch.Tensor:
        calls.append(index)
        return F.gelu(x @ weights[index])

    x = parameter(4, 6)
    y: torch.Tensor = x
    for index in range(segments):
        y = checkpoint(block, y, index, use_reentrant=False, preserve_rng_state=False)
    y.sum().backward()
    return {"calls": calls, "grads": [traits(weight.grad) for weight in weights]}


def test_checkpointed_segments_are_computed_again_in_backward() -> None:
    expected = {"calls": [0, 1, 2, 2, 1, 0], "grads": [["cuda:0", "torch.float32", [6, 6]]] * 3}
    assert run_fake_cuda(recomputed, 3) == expected


def bucket() -> dict[str, Any]:
    flat, weights, order = torch.zeros(72, device="cuda"), [parameter(6, 6) for _ in range(2)], []
    views = [part.view(6, 6) for part in flat.split(36)]
    for index, (weight, view) in enumerate(zip(weights, views, strict=True)):
        weight.grad = view
        weight.register_post_accumulate_grad_hook(lambda _, index=index: order.append(index))
    for _ in range(2):
        (parameter(4, 6) @ weights[0] @ weights[1]).sum().backward()
    same = [weight.grad is view and view._base is flat for weight, view in zip(weights, views, strict=True)]
    return {"order": order, "same": same, "writes": flat._version}


def test_gradients_stay_views_of_a_bucket_and_hooks_fire_in_backward_order() -> None:
    assert run_fake_cuda(bucket) == {"order": [1, 0, 1, 0], "same": [True, True], "writes": 4}


def training_step(rank: int) -> dict[str, Any]:
    """One step of a tensor-parallel block with a bucket reduced from hooks and a pipeline neighbour."""
    with real_tensors():
        mesh = DeviceMesh("cuda", torch.arange(WORLD).view(8, 8, 8), mesh_dim_names=("pp", "dp", "tp"))
    tp, dp = mesh.get_group("tp"), mesh.get_group("dp")
    weight, master, x = (
        parameter(64, 64, dtype=torch.bfloat16),
        parameter(512),
        parameter(2, 16, 64, dtype=torch.bfloat16),
    )
    flat, shard = torch.zeros(64 * 64, device="cuda"), torch.empty(512, device="cuda")
    works: list[Any] = []
    weight.main_grad = flat.view(64, 64)
    weight.grad_ready = lambda: works.append(dist.reduce_scatter_single(shard, flat, group=dp, async_op=True))

    def block(x: torch.Tensor) -> torch.Tensor:
        q = MainGradLinear.apply(x.reshape(32, 64), weight).view(2, 16, 4, 16).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    dist.recv(x.data, (rank - 64) % WORLD)
    y = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    dist.all_reduce(y.data, group=tp)
    y.backward(torch.empty_like(y))
    works.append(dist.isend(x.grad, (rank - 64) % WORLD))
    for work in works:
        work.wait()
    master.grad = shard
    torch.optim.AdamW([master]).step()
    dist.all_gather_single(weight.data.view(-1), master.data.bfloat16(), group=dp)
    return {"coordinate": list(mesh.get_coordinate() or ()), "works": len(works), "grad": traits(x.grad)}


def steps(ranks: list[int]) -> list[Any]:
    results = []
    for rank in ranks:
        with fake_world(rank, WORLD):
            results.append(training_step(rank))
    return results


def test_whole_training_steps_of_several_ranks_run_in_one_process() -> None:
    ranks, grad = {0: [0, 0, 0], 37: [0, 4, 5], 511: [7, 7, 7]}, ["cuda:0", "torch.bfloat16", [2, 16, 64]]
    expected = [{"coordinate": coordinate, "works": 2, "grad": grad} for coordinate in ranks.values()]
    assert run_fake_cuda(steps, list(ranks), world=0) == expected


def synchronise() -> float:
    return torch.zeros(3, device="cuda").sum().item()


def die() -> None:
    os._exit(3)


def sleep() -> None:
    time.sleep(60)


def test_a_failing_body_fails_the_caller_and_not_the_next_call() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 3 of 4.*in synchronise.*DataDependentOutput"):
        run_fake_cuda(synchronise, rank=3, world=4)
    with pytest.raises(AssertionError, match="exit code 3"):
        run_fake_cuda(die)
    with pytest.raises(AssertionError, match="exit code 1"):
        run_fake_cuda(sleep, timeout=0.5)
    assert run_fake_cuda(place, rank=1, world=2)["rank"] == 1
