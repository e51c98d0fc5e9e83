"""The bindings of csrc/cuda/bindings/, compiled by a plain C++ compiler against the installed torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.ops.cuda.build import CSRC, INCLUDE, SOURCES, HostBuild, asked_sanitizers, headers, run

BINDINGS = sorted((CSRC / "cuda" / "bindings").glob("*.cpp"))
TORCH = Path(torch.__file__).parent
FOLDERS = ["-I", str(CSRC / "bindings"), "-isystem", str(TORCH / "include")]


def check(sources: Sequence[Path], folder: Path) -> str:
    """Return what a compiler says against `sources` in this order and torch's own CUDA headers; work in `folder`."""
    if not (TORCH / "include/c10/cuda/impl/cuda_cmake_macros.h").exists():  # the one that a CPU build of torch lacks
        stub = folder / "c10/cuda/impl/cuda_cmake_macros.h"
        stub.parent.mkdir(parents=True)
        stub.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Werror", "-isystem", str(folder), "-isystem", str(headers())]
    return run(["g++", *flags, *INCLUDE, *FOLDERS, str(_together(sources, folder))]).stderr


def emulated(build: HostBuild, folder: Path) -> Path:
    """Make a library that gives torch's CPU tensors the bindings of csrc/cuda/bindings/ and the emulated kernels.

    Loaded into a process that has imported engine._C, it takes the place of the CPU kernels. Stand-ins for torch's
    CUDA headers (csrc/testing/c10/cuda) come first on the include path.
    """
    flags = asked_sanitizers()
    binding = (_together(BINDINGS, folder), ["-DTRIMARAN_CUDA_KEY=CPU", "-Wall", "-Werror", *FOLDERS])
    objects = build.all_compiled([binding, *((source, flags) for source in SOURCES)])
    return build.joined(objects, [*flags, f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10"])


def _together(sources: Sequence[Path], folder: Path) -> Path:
    """Make them one source: torch's headers take longer to read than all that follows."""
    text = folder / "bindings.cpp"
    text.write_text("".join(f'#include "{source}"\n' for source in sources))
    return text
