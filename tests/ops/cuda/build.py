"""Builds of the CUDA sources without a GPU: for the host under csrc/testing/emulation.h, and by nvcc."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
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
    """Compiles sources once per test session, in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects: dict[tuple[str, ...], Path] = {}
        self._count = itertools.count()

    def library(self, *sources: Path, entries: str = "", flags: Sequence[str] = ()) -> Emulated:
        """Load a library of .cu `sources` and `entries`, the text of C functions that call them."""
        return Emulated(self.link(*sources, entries=entries, flags=[*flags, *asked_sanitizers()]))

    def link(self, *sources: Path, entries: str = "", flags: Sequence[str] = ()) -> Path:
        """Make that library, but don't load it."""
        if entries:
            text = self._new("entries.cu")
            text.write_text(entries)
            sources = (*sources, text)
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: self.compiled(source, flags), sources))
        return self.joined(objects, flags)

    def joined(self, objects: Sequence[Path], flags: Sequence[str] = ()) -> Path:
        """Link `objects` to a library."""
        output = self._new("build.so")
        linked = run(["g++", "-shared", *map(str, objects), "-o", str(output), *flags])
        assert linked.returncode == 0, linked.stderr
        return output

    def compiled(self, source: Path, flags: Sequence[str] = ()) -> Path:
        """Return the object of a source, compiled before or now."""
        key = (str(source), *flags)
        if key not in self._objects:
            target = self._new(f"{source.stem}.o")
            folders = [*INCLUDE, "-I", str(CSRC / "testing"), "-isystem", str(headers())]
            done = run(["g++", *HOST_FLAGS, *flags, *folders, "-x", "c++", "-c", str(source), "-o", str(target)])
            assert done.returncode == 0, done.stderr
            self._objects[key] = target
        return self._objects[key]

    def _new(self, name: str) -> Path:
        return self._folder / f"{next(self._count)}-{name}"


def asked_sanitizers() -> list[str]:
    """Return the flags of sanitizers that the environment asks for in every emulated build."""
    names = os.environ.get(SANITIZE)
    return sanitizer_flags(names) if names else []


def sanitizer_flags(names: str) -> list[str]:
    """Flags of a build under sanitizers, `names` as -fsanitize takes them; whatever they find ends the program."""
    return [f"-fsanitize={names}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
