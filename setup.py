"""Build Trimaran: the Python packages and `engine._C`, the fused kernels: for CPUs, and for GPUs if torch has CUDA.

    pip install --no-build-isolation -e .[dev]

torch must be installed first (the extension is built against it). ENGINE_NO_EXT=1 installs without a compiler:
everything then runs on the plain torch references.
"""

from __future__ import annotations

import functools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
EXACT = ("random.cpp",)  # bit-identical to engine/ops/philox.py


def version() -> str:
    found = re.search(r'__version__ = "(.+)"', (ROOT / "engine" / "__init__.py").read_text())
    assert found is not None, "engine/__init__.py has no __version__"
    return found.group(1)


def extension() -> dict[str, Any]:
    """Describe engine._C, or nothing when it was asked to be left out."""
    if os.environ.get("ENGINE_NO_EXT") == "1":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
    except ImportError:
        raise SystemExit(
            "torch must be installed before trimaran is built: pip install torch==2.13.0, then "
            "pip install --no-build-isolation -e . (or set ENGINE_NO_EXT=1 to go without compiled kernels)"
        ) from None

    class Build(BuildExtension):
        """Compile EXACT sources without contracting a * b + c into one rounding, which the others profit from."""

        def build_extensions(self) -> None:
            compile_one = self.compiler._compile

            def compile_source(obj: str, src: str, ext: str, cc_args: Any, postargs: Any, pp_opts: Any) -> None:
                exact = ["-ffp-contract=off"] if Path(src).name in EXACT else []
                compile_one(obj, src, ext, cc_args, [*postargs, *exact], pp_opts)

            self.compiler._compile = compile_source
            if not cuda:  # torch swaps the compiler of all files while it compiles one for GPUs
                self.compiler.compile = functools.partial(_compile_side_by_side, self.compiler)
            print(f"trimaran: building kernels for {'CPUs and GPUs' if reason is None else 'CPUs alone: ' + reason}")
            super().build_extensions()

    reason = _why_no_cuda(torch.version.cuda, CUDA_HOME)
    cuda = reason is None
    if cuda and torch.cuda.device_count() == 0:  # nothing here to build for: build for data centre GPUs
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", _architectures(torch.version.cuda))
    kernels = (CUDAExtension if cuda else CppExtension)(
        "engine._C",
        [*_sources("bindings"), *_sources("cpu"), *(_sources("cuda", "cuda/bindings") if cuda else [])],
        include_dirs=[str(CSRC / "include"), str(CSRC / "bindings")],
        extra_compile_args={
            "cxx": ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"],
            # random.cu must not contract a * b + c. The others wait for memory, and so give what emulation shows.
            "nvcc": ["-O3", "-fmad=false"],
        },
        extra_link_args=["-fopenmp"],
        depends=[str(path) for path in CSRC.rglob("*.h")] + [str(path) for path in CSRC.rglob("*.cuh")],
    )
    return {"ext_modules": [kernels], "cmdclass": {"build_ext": Build.with_options(use_ninja=False)}}


def _compile_side_by_side(
    compiler: Any,
    sources: list[str],
    output_dir: str | None = None,
    macros: Any = None,
    include_dirs: Any = None,
    debug: bool = False,
    extra_preargs: Any = None,
    extra_postargs: Any = None,
    depends: Any = None,
) -> list[str]:
    """Do what the compiler object's own `compile` does, a file on each core: they take half a minute each."""
    macros, objects, postargs, options, build = compiler._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs
    )
    arguments = compiler._get_cc_args(options, debug, extra_preargs)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(compiler._compile, obj, *build[obj], arguments, postargs, options) for obj in build]
        for job in jobs:
            job.result()
    return objects


def _why_no_cuda(torch_cuda: str | None, cuda_home: str | None) -> str | None:
    """Return why kernels for GPUs cannot be built, in one line, or None when they can; stop at half a toolkit."""
    if torch_cuda is None:
        return "the installed torch has no CUDA"
    if cuda_home is None or not Path(cuda_home, "bin", "nvcc").exists():
        where = "" if cuda_home is None else f" in {cuda_home}/bin"
        return f"torch has CUDA {torch_cuda}, but there is no nvcc{where}; set CUDA_HOME to the toolkit's folder"
    # torch looks for the toolkit around the nvcc on the PATH, which may be a script that calls another
    headers = ("include/cuda_runtime.h", "targets/*/include/cuda_runtime.h")  # the latter in environments of conda
    if not any(path for pattern in headers for path in Path(cuda_home).glob(pattern)):
        raise SystemExit(
            f"nvcc was found at {cuda_home}/bin/nvcc, but no toolkit is in {cuda_home} (no include/cuda_runtime.h): "
            "set CUDA_HOME to the toolkit's folder"
        )
    return None


def _architectures(torch_cuda: str) -> str:
    """Return the data centre GPUs that a toolkit knows, and PTX for those after them."""
    knows_blackwell = tuple(int(part) for part in torch_cuda.split(".")) >= (12, 8)
    return "8.0;9.0;10.0+PTX" if knows_blackwell else "8.0;9.0+PTX"


def _sources(*folders: str) -> list[str]:
    paths = [path for folder in folders for path in sorted((CSRC / folder).iterdir())]
    return [str(path.relative_to(ROOT)) for path in paths if path.suffix in (".cpp", ".cu")]


setup(
    name="trimaran",
    version=version(),
    description="A 3D-parallel pretraining engine for large language models: every layout gives the same training",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["engine", "engine.*", "launch", "launch.*"]),
    install_requires=[
        "torch==2.13.0",
        "numpy>=1.26",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "safetensors>=0.5",
        "tokenizers>=0.20",
        "rich>=13",
        "wandb>=0.18",
        "psutil>=5.9",
        "nvidia-ml-py>=12",
    ],
    extras_require={
        "cuda": ["flash-attn>=2.6"],
        "hf": ["transformers>=4.50"],
        "tasks": ["lm-eval>=0.4.9"],
        "sweep": ["hydra-submitit-launcher>=1.2", "hydra-optuna-sweeper>=1.3"],
        "wandb": ["wandb-workspaces>=0.4"],
        "dev": [
            "hydra-optuna-sweeper>=1.3",
            "hydra-submitit-launcher>=1.2",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "pytest>=8",
            "pytest-rerunfailures>=14",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "transformers>=4.50",
            "wandb-workspaces>=0.4",
        ],
    },
    **extension(),
)
