"""Our CUDA kernels on a GPU, held to the plain references on the CPU: every op in all dtypes, and whole training steps.

Where there is no GPU, tests/ops/cuda/test_bindings.py runs this file on CPU tensors that the emulated kernels serve.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from engine.device import Device
from engine.mesh import join_world
from engine.ops import backend
from engine.ops.dropout import add_dropout, dropout
from engine.ops.philox import fill_normal_, fill_uniform_, make_key
from tests.layouts import GPT, LLAMA, assemble, make_config, train_here, train_oracle
from tests.ops.cases import CASES, Case, Inputs
from tests.ops.cuda.judge import judge
from tests.ops.refusals import REFUSALS, check_refused

EMULATED = "TRIMARAN_EMULATED_CUDA"  # environment: a library of tests/ops/cuda/torch_bindings.py
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    """Where the CUDA kernels run."""
    library = os.environ.get(EMULATED)
    if library is not None:
        assert backend.load_error() is None  # the operators are declared before they are bound anew
        torch.ops.load_library(library)
        return CPU
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; tests/ops/cuda/test_bindings.py emulates one")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    backend.select()


def select_kernels(device: torch.device) -> None:
    """Let our kernels on `device` run every op; attention has none on GPUs."""
    kernels = "cuda" if device.type == "cuda" else "cpu"
    backend.select(kernels, {"attention": "reference"}, device.type)


def test_every_operator_but_attention_is_bound(device: torch.device) -> None:
    operators = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("trimaran::")}
    assert len(operators) > 15
    for name in operators:
        # the kernel that is active has such a line: "CUDA: registered at ...csrc/cuda/bindings/norm.cpp:99 [kernel]"
        table = torch._C._dispatch_dump_table(name)
        is_bound = re.search(rf"^{device.type.upper()}: .*csrc/cuda/bindings/", table, re.MULTILINE) is not None
        assert is_bound == (not name.startswith("trimaran::attention")), table


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in DTYPES[: 2 if case.wide_only else None]],
    ids=str,
)
def test_op(device: torch.device, case: Case, dtype: torch.dtype) -> None:
    backend.select("reference")
    truth = case.run(Inputs(CPU, dtype, torch.float64), *case.sizes)
    plain = case.run(Inputs(CPU, dtype, dtype), *case.sizes)
    select_kernels(device)
    assert backend.native(case.op, torch.empty(1, dtype=dtype, device=device))
    ours = case.run(Inputs(device, dtype, dtype), *case.sizes)
    for got, theirs, true in zip(ours, plain, truth, strict=True):
        assert got.device.type == device.type
        assert got.dtype == theirs.dtype
        judge(got.cpu(), theirs, true.double(), terms=case.terms)


def equal_on_both(device: torch.device, run: Callable[[torch.device], list[Tensor]]) -> None:
    """Hold what the kernels on `device` give to the reference on the CPU, bit for bit."""
    backend.select("reference")
    expected = run(CPU)
    select_kernels(device)
    for got, true in zip(run(device), expected, strict=True):
        assert torch.equal(got.cpu(), true)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("fill", [fill_normal_, fill_uniform_])
def test_numbers_are_bitwise_those_of_the_cpu(
    device: torch.device, fill: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    for sizes, whole, offsets in (((1,), (5,), (3,)), ((3, 257), (9, 300), (2, 1)), ((2, 3, 5), (4, 3, 7), (1, 0, 2))):
        equal_on_both(
            device,
            lambda where, sizes=sizes, whole=whole, offsets=offsets: [  # type: ignore[misc]
                fill(torch.empty(sizes, dtype=dtype, device=where), 2**63 + 5, whole, offsets, 0.25, 0.7)
            ],
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "f"), [(1, 1), (5, 301), (3, 64)])
def test_dropout_is_bitwise_that_of_the_cpu(device: torch.device, dtype: torch.dtype, rows: int, f: int) -> None:
    def run(where: torch.device) -> list[Tensor]:
        inputs, address = Inputs(where, dtype, dtype), torch.arange(rows, device=where) * 2**31 + 3
        x, residual, bias, dy = inputs.leaf(rows, f), inputs.leaf(rows, f), inputs(f), inputs(rows, f)
        results = []
        for y in (
            dropout(x, 0.3, make_key(1, "d"), address, f + 2, 1),
            add_dropout(residual, x, 0.3, make_key(1, "d"), address, f + 2, 1, bias_f=bias),
        ):
            results += [y.detach(), *torch.autograd.grad(y, x, dy)]
        return results

    equal_on_both(device, run)


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_what_kernels_cannot_take_is_refused(
    device: torch.device, call: Callable[[Any, Any], Any], message: str
) -> None:
    check_refused(call, message, device)


def test_tensors_on_two_devices_are_refused(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("all tensors of an emulated device are on the CPU")
    x, w = torch.ones(2, 4, device=device), torch.ones(4)
    with pytest.raises(RuntimeError, match=r"rms_norm must be on one device, not cuda:\d+ and cpu"):
        torch.ops.trimaran.rms_norm(x, None, w, 1e-5)


# Relative errors of losses, of gradient norms, and of all weights together after three steps.
NEAR = {
    "fp64": (1e-10, 1e-10, 1e-10),
    "fp32": (1e-5, 1e-5, 1e-4),
    "bf16": (1e-2, 5e-2, 5e-2),
    "fp16": (2e-3, 1e-2, 2e-2),
}


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("model", [LLAMA, GPT], ids=["llama", "gpt"])
def test_training_follows_the_plain_model(device: torch.device, model: dict[str, Any], dtype: str) -> None:
    config = make_config(model=model, precision={"dtype": dtype, "loss_scale": 1024.0})
    truth = train_oracle(config, 3)
    select_kernels(device)
    here = Device(device, "nccl" if device.type == "cuda" else "gloo")
    join_world(here, 60.0)
    try:
        told = train_here(config, 3, here)
    finally:
        dist.destroy_process_group()
    losses, norms, weights = NEAR[dtype]
    assert told["losses"] == pytest.approx(truth["losses"], rel=losses)
    assert told["norms"] == pytest.approx(truth["norms"], rel=norms)
    trained = assemble([told])
    assert trained.keys() == truth["weights"].keys()
    # the gradient of the bias of keys is nothing but rounding, of which AdamW makes steps as large as any
    names = sorted(name for name in trained if dtype == "fp64" or not name.endswith("attention.k.bias"))
    ours, theirs = (torch.cat([w[name].flatten() for name in names]) for w in (trained, truth["weights"]))
    assert (ours - theirs).norm() <= weights * theirs.norm()
