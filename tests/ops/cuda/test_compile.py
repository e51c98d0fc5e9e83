"""nvcc compiles the CUDA sources for data-centre GPUs and ptxas says what a thread of each kernel takes; a C++ compiler
checks the binding to torch."""

from __future__ import annotations

import functools
import re
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

from tests.ops.cuda.build import CSRC, INCLUDE, SOURCES, run, toolkit
from tests.ops.cuda.torch_bindings import BINDINGS, check

ARCHITECTURES = (80, 90, 100)
TARGETS = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
PTX = f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}"  # for what comes after them
REGISTERS = 64  # of a thread: 1024 threads fit on a multiprocessor
# Kernel: its own budget. Both are bound by memory, and 896 threads of theirs keep it busy.
MORE_REGISTERS: dict[str, int] = {"norm_rows_backward": 72, "adamw": 72}


class Use(NamedTuple):
    """What ptxas says of a kernel on one architecture."""

    kernel: str
    architecture: int
    registers: int
    spilled: int  # bytes stored and loaded


ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)a?'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def uses(verbose: str) -> list[Use]:
    """Read the output of ptxas -v."""
    found = list(ENTRY.finditer(verbose))
    demangled = run(["c++filt", *(entry["name"] for entry in found)]).stdout.splitlines() if found else []
    names = [re.sub(r"^.*?(\w+)(<.*)?\(.*$", r"\1", name.replace("(anonymous namespace)", "")) for name in demangled]
    return [
        Use(name, int(e["architecture"]), int(e["registers"]), int(e["stores"]) + int(e["loads"]))
        for name, e in zip(names, found, strict=True)
    ]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Future[subprocess.CompletedProcess[str]]]:
    """All sources in the hands of nvcc, two at a time, with the flags of setup.py and those that torch adds."""
    toolkit()
    folder = tmp_path_factory.mktemp("nvcc")
    flags = ["-std=c++20", "-O3", "-fmad=false", *COMMON_NVCC_FLAGS, "-Xptxas", "-v", *INCLUDE, *TARGETS, PTX]
    compile_one = functools.partial(run, timeout=880)  # half a minute, if nothing else runs
    pool = ThreadPoolExecutor(2)
    done = {
        source: pool.submit(compile_one, ["nvcc", *flags, "-c", str(source), "-o", str(folder / f"{source.stem}.o")])
        for source in SOURCES
    }
    pool.shutdown(wait=False)
    return done


@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernels_keep_to_their_registers(
    compiled: dict[Path, Future[subprocess.CompletedProcess[str]]], source: Path
) -> None:
    done = compiled[source].result()
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    used = uses(done.stderr)
    assert {use.architecture for use in used} == set(ARCHITECTURES)
    written = set(re.findall(r"__global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(", source.read_text()))
    assert written <= {use.kernel for use in used}, "a kernel that no one launches"
    too_many = [use for use in used if use.spilled > 0 or use.registers > MORE_REGISTERS.get(use.kernel, REGISTERS)]
    assert not too_many, "\n".join(map(str, too_many))


def test_budgets_are_of_kernels_that_exist() -> None:
    written = "".join(path.read_text() for path in (CSRC / "cuda").glob("*.cu*"))
    assert [kernel for kernel in MORE_REGISTERS if not re.search(rf"\b{kernel}\(", written)] == []
    assert all(REGISTERS < budget <= 255 for budget in MORE_REGISTERS.values())


def test_spills_are_seen(tmp_path: Path) -> None:
    """A kernel that needs more registers than it may have, and what is said of it."""
    toolkit()
    lines = " ".join(f"const double x{i} = sin(x[{i} * n]);" for i in range(48))
    sums = " ".join(f"y[{i} * n] = x{i} * x{(i + 7) % 48};" for i in range(48))
    source = tmp_path / "greedy.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) "
        f"greedy(const double* __restrict__ x, double* __restrict__ y, int n) {{ {lines} {sums} }}\n"
    )
    flags = ["-arch=sm_90", "-Xptxas", "-v", "-c", str(source), "-o", str(tmp_path / "greedy.o")]
    done = run(["nvcc", *flags])
    assert done.returncode == 0, done.stderr
    (use,) = uses(done.stderr)
    assert use.kernel == "greedy"
    assert use.architecture == 90
    assert 0 < use.registers <= 32
    assert use.spilled > 0


@pytest.mark.parametrize("sources", [BINDINGS, BINDINGS[::-1]], ids=["forwards", "backwards"])
def test_bindings_are_valid(sources: list[Path], tmp_path: Path) -> None:
    """In both orders: what a file forgets to include may come from one before it, but not from those on both sides."""
    assert check(sources, tmp_path) == ""


def test_a_binding_that_is_not_valid_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cpp"
    source.write_text('int number() { return "text"; }\n')
    assert "invalid conversion" in check([source], tmp_path)
