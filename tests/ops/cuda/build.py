"""Builds of the CUDA sources without a GPU: for the host under csrc/testing/emulation.h, and by nvcc."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor

CSRC = Path(__file__).parents[3] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
INCLUDE = ["-I", str(CSRC / "include"), "-I", str(CSRC / "cuda")]

# Kernels read memory through pointers to other types, as nvcc lets them, and may not contract a * b + c.
HOST_FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-gnu-unique"]
SANITIZE = "TRIMARAN_SANITIZE"  # environment: what emulated builds get as -fsanitize=
OBJECTS = "TRIMARAN_OBJECTS"  # environment: the folder of objects that a process shares with the one that started it

Argument = Tensor | Sequence[int] | int | float | None


@functools.cache
def toolkit() -> Path:
    """Return the CUDA toolkit's folder, or skip; nvcc on the PATH may be a script that calls the real one."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH")
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, timeout=60)
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    assert top is not None, dry.stderr
    return Path(top[1]).resolve()


def headers() -> Path:
    """Return the folder of the toolkit's headers, or skip."""
    include = toolkit() / "include"
    if not (include / "cuda_runtime.h").exists():
        pytest.skip(f"no CUDA headers in {include}")
    return include


def run(
    command: list[str], timeout: float = 240, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler or what it made; the caller looks at the exit code."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd)


class EmulationError(AssertionError):
    """A launch failed: what the emulation saw, or the CUDA error code."""


class Emulated:
    """C functions of kernels that were compiled for the host. They return a cudaError_t."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.trimaran_emulation_error.restype = ctypes.c_char_p

    def seed(self, value: int) -> None:
        """Choose the order in which blocks and threads run."""
        self._library.trimaran_emulation_seed(ctypes.c_uint64(value))

    def __call__(self, function: str, *arguments: Argument) -> None:
        """Call `function`. Tensors (contiguous) are passed as pointers, lists as int64 arrays, int and float as int64
        and double, None as a null pointer. Raises EmulationError if it doesn't return 0."""
        code = getattr(self._library, function)(*map(_to_c, arguments))
        if code != 0:
            said = self._library.trimaran_emulation_error().decode()
            raise EmulationError(said or f"{function} returned error {code}")


def _to_c(value: Argument) -> object:
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        assert value.device.type == "cpu"
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    if value is None:
        return ctypes.c_void_p(None)
    return (ctypes.c_int64 * len(value))(*value)


class HostBuild:
    """Compiles sources once per test session, also where it goes on in other processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = itertools.count()
        self.objects = Path(os.environ.get(OBJECTS, folder / "objects"))
        self.objects.mkdir(exist_ok=True)

    def library(self, *sources: Path, entries: str = "", flags: Sequence[str] = ()) -> Emulated:
        """Load a library of .cu `sources` and `entries`, the text of C functions that call them."""
        return Emulated(self.link(*sources, entries=entries, flags=[*flags, *asked_sanitizers()]))

    def link(self, *sources: Path, entries: str = "", flags: Sequence[str] = ()) -> Path:
        """Make that library, but don't load it."""
        if entries:
            text = self._new("entries.cu")
            text.write_text(entries)
            sources = (*sources, text)
        return self.joined(self.all_compiled((source, flags) for source in sources), flags)

    def all_compiled(self, jobs: Iterable[tuple[Path, Sequence[str]]]) -> list[Path]:
        """Return the objects of sources, each with flags of its own, two compiled at a time."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda job: self.compiled(*job), jobs))

    def joined(self, objects: Sequence[Path], flags: Sequence[str] = ()) -> Path:
        """Link `objects` to a library."""
        output = self._new("build.so")
        linked = run(["g++", "-shared", *map(str, objects), "-o", str(output), *flags])
        assert linked.returncode == 0, linked.stderr
        return output

    def compiled(self, source: Path, flags: Sequence[str] = ()) -> Path:
        """Return the object of a source, compiled before or now; one of the same text is the same source."""
        key = hashlib.sha256("\0".join([source.read_text(), *flags]).encode()).hexdigest()[:16]
        target = self.objects / f"{source.stem}-{key}.o"
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever else needs it waits until it is here
            if not target.exists():
                folders = [*INCLUDE, "-I", str(CSRC / "testing"), "-isystem", str(headers())]
                made = target.with_suffix(".new")
                done = run(["g++", *HOST_FLAGS, *flags, *folders, "-x", "c++", "-c", str(source), "-o", str(made)])
                assert done.returncode == 0, done.stderr
                made.rename(target)
        return target

    def _new(self, name: str) -> Path:
        return self._folder / f"{next(self._count)}-{name}"


def asked_sanitizers() -> list[str]:
    """Return the flags of sanitizers that the environment asks for in every emulated build."""
    names = os.environ.get(SANITIZE)
    return sanitizer_flags(names) if names else []


def sanitizer_flags(names: str) -> list[str]:
    """Flags of a build under sanitizers, `names` as -fsanitize takes them; whatever they find ends the program."""
    return [f"-fsanitize={names}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
