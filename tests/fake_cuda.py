"""Run any rank of any world on fake CUDA tensors, without a GPU and without other ranks.

`run_fake_cuda(body, *args, rank=37, world=512)` calls `body(*args)` in a process where tensors on `cuda` have
shape, dtype and device but no data, autograd runs on them, and collectives return at once. A server process
loads csrc/testing/fake_cuda.cpp and imports torch once; each call runs in a fork of it and leaves no trace in
the caller. Reading a value (`.item()`, `if tensor:`) raises: on a GPU it would have been a synchronisation.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "csrc" / "testing" / "fake_cuda.cpp"
GPUS_PER_NODE = 8  # as many devices as fake_cuda.cpp reports


def run_fake_cuda(
    body: str | Callable[..., Any], *args: Any, rank: int = 0, world: int = 1, timeout: float = 120.0
) -> Any:
    """Return `body(*args)`, called inside `fake_world(rank, world)` in a process of its own.

    `body` is 'package.module:function' or a function at module level; arguments and result travel as JSON.
    With world=0 no world is entered: the body enters the `fake_world` of one rank after the other itself.
    Raises AssertionError with the traceback when the body raises, dies, or runs longer than `timeout` seconds.
    Skips where torch itself was built for CUDA: it would ask the driver for the devices that are not there.
    """
    import pytest
    import torch

    if torch.version.cuda is not None:
        pytest.skip("a torch with CUDA knows what devices there are")
    target = body if isinstance(body, str) else f"{body.__module__}:{body.__qualname__}"
    call = {"target": target, "args": args, "rank": rank, "world": world, "timeout": timeout}
    server = _server()
    assert server.stdout is not None
    try:
        print(json.dumps(call), file=server.stdin, flush=True)
        line = server.stdout.readline()
        if not line:
            raise AssertionError("the fake CUDA server died, see standard error")
    except BaseException:  # a late reply would answer the next call
        server.kill()
        _server.cache_clear()
        raise
    reply = json.loads(line)
    if "error" in reply:
        raise AssertionError(f"{target} on fake rank {rank} of {world} failed: {reply['error']}")
    return reply["result"]


@contextlib.contextmanager
def fake_world(rank: int, world: int) -> Iterator[Any]:
    """Be `rank` of `world` under a FakeTensorMode (yielded) and a fake process group; only inside a body.

    The launcher's environment variables are set as on nodes of eight GPUs. Worlds cannot be nested.
    """
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    local = {"LOCAL_RANK": rank % GPUS_PER_NODE, "LOCAL_WORLD_SIZE": min(world, GPUS_PER_NODE)}
    launched = {key: str(value) for key, value in {"RANK": rank, "WORLD_SIZE": world, **local}.items()}
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        with mock.patch.dict(os.environ, launched), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """Leave the FakeTensorMode for a while: building a DeviceMesh, for one, reads the tensors it makes."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        yield


@functools.cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fake_cuda", str(_build())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _build() -> Path:
    """Compile fake_cuda.cpp against the installed torch unless that is done already; return the library."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    key = f"{importlib.metadata.version('torch')} {torch} ".encode() + SOURCE.read_bytes()
    library = REPOSITORY / "build" / "fake_cuda" / f"{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        draft = library.with_suffix(f".{os.getpid()}")
        link = [f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
        compiler = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{torch}/include"]
        subprocess.run([*compiler, str(SOURCE), "-o", str(draft), *link], check=True)
        draft.replace(library)  # whole or not at all, for test processes that start together
    return library


def _serve(library: str) -> None:
    """Answer one call per line of standard input, each from a fork; what bodies print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ctypes.CDLL(library)  # before torch, whose import settles for good whether there are CUDA hooks
    for module in ("torch", "torch.distributed.device_mesh", "torch.utils.checkpoint"):
        importlib.import_module(module)
    _warm_up()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(json.loads(line), replies)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            print(json.dumps({"error": f"exit code {code}, see standard error"}), file=replies, flush=True)


def _warm_up() -> None:
    """Make torch import what fake tensors need; no backward pass, since its threads would not survive a fork."""
    import torch

    with fake_world(0, 1):
        torch.nn.functional.gelu(torch.empty(2, 2, device="cuda") @ torch.empty(2, 2, device="cuda"))


def _answer(call: dict[str, Any], replies: Any) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(call["timeout"], exit=True)
    try:
        module, function = call["target"].split(":")
        body = getattr(importlib.import_module(module), function)
        world = fake_world(call["rank"], call["world"]) if call["world"] else contextlib.nullcontext()
        with world:
            reply = json.dumps({"result": body(*call["args"])})
    except BaseException:
        reply = json.dumps({"error": f"\n{traceback.format_exc()}"})
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    print(reply, file=replies, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
