"""Which library runs an op, and in what words one is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from engine.config import Config
from engine.errors import ConfigError
from engine.ops import backend
from engine.ops.libraries import flash
from engine.validate import validate
from tests.ops.libraries.standins import forget

FLOAT, HALF = torch.float32, torch.bfloat16
OWN = ("native", "reference")


@pytest.fixture(autouse=True)
def _installed(libraries: dict[str, ModuleType]) -> None:
    pass


def refusal(default: str = "auto", overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        backend.select(default, overrides, "cuda")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def uninstall(libraries: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    forget()


def test_auto_takes_libraries_for_the_dtypes_that_they_serve_best() -> None:
    half, single = backend.active("cuda", HALF), backend.active("cuda", FLOAT)
    assert {op for op, name in half.items() if name == "flash"} == {"attention", "cross_entropy", "rope"}
    assert {op for op, name in half.items() if name == "apex"} == {"adamw", "weight_grad"}
    assert {op for op, name in single.items() if name == "flash"} == {"cross_entropy", "rope"}
    assert {op for op, name in single.items() if name == "apex"} == {"adamw", "layer_norm", "rms_norm"}
    assert not {"flash", "apex"} & set(backend.active("cuda", torch.float64).values())
    assert not {"flash", "apex"} & set(backend.active("cpu", HALF).values())
    assert "rounds the gradient" in {row.op: row.others for row in backend.table("cuda", HALF)}["rms_norm"]["apex"]


def test_naming_a_library_gives_it_all_that_it_takes() -> None:
    backend.select("apex", {"rope": "flash"}, "cuda")
    assert backend.choose("rms_norm", torch.ones(2, dtype=HALF)) == "apex"
    assert backend.choose("weight_grad", torch.ones(2)) == "apex"
    assert backend.choose("rope", torch.ones(1, 2, 2, 4)) == "flash"
    assert backend.choose("attention", torch.ones(1, 2, 2, 4, dtype=HALF)) in OWN
    backend.select("reference", {"attention": "flash"}, "cuda")
    assert backend.choose("attention", torch.ones(1, 2, 2, 4, dtype=HALF)) == "flash"
    assert backend.choose("rope", torch.ones(1, 2, 2, 4)) == "reference"


def test_a_named_kernel_brings_no_library_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "load_error", lambda: None)
    monkeypatch.setattr(backend, "_is_built", lambda operator, device: True)
    backend.select("cuda", {}, "cuda")
    assert backend.choose("dropout", torch.ones(2)) == "native"
    assert backend.choose("attention", torch.ones(1, 2, 2, 4, dtype=HALF)) in OWN


@pytest.mark.parametrize(
    ("op", "shape"),
    [("rms_norm", (0, 8)), ("attention", (0, 2, 2, 8)), ("attention", (1, 2, 2, 264)), ("rope", (1, 2, 2, 264)),
     ("cross_entropy", (0, 8))],
)  # fmt: skip
def test_shapes_that_a_library_does_not_take(op: str, shape: tuple[int, ...]) -> None:
    backend.select("auto", {op: "apex" if op == "rms_norm" else "flash"}, "cuda")
    assert backend.choose(op, torch.ones(shape, dtype=HALF)) in OWN
    fitting = tuple(min(8, max(1, size)) for size in shape)
    assert backend.choose(op, torch.ones(fitting, dtype=HALF)) in ("apex", "flash")


def test_elements_beyond_32_bits() -> None:
    backend.select("apex", {}, "cuda")
    assert backend.choose("adamw", torch.empty(2**31, device="meta")) != "apex"
    assert backend.choose("adamw", torch.empty(2**31 - 1, device="meta")) == "apex"


# -- reasons -------------------------------------------------------------------------------------------------


def test_a_library_that_is_not_there(libraries: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(libraries, monkeypatch, "flash_attn", "amp_C", "apex")
    assert "`import flash_attn` failed: ModuleNotFoundError: " in refusal("flash")
    assert "NVIDIA's apex is not installed" in refusal("apex")
    half = backend.active("cuda", HALF)
    assert {op for op, name in half.items() if name in ("flash", "apex")} == {"weight_grad"}


def test_a_part_that_is_not_there(libraries: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(libraries, monkeypatch, "flash_attn.ops.triton.rotary")
    assert "`import flash_attn.ops.triton.rotary` failed" in refusal("flash")
    backend.select("flash", {"rope": "auto"}, "cuda")
    assert backend.choose("rope", torch.ones(1, 2, 2, 4)) in OWN
    assert backend.choose("cross_entropy", torch.ones(2, 4)) == "flash"


def test_a_function_that_is_not_there(libraries: dict[str, ModuleType]) -> None:
    del libraries["amp_C"].multi_tensor_adam_capturable
    forget()
    assert "the installed amp_C lacks multi_tensor_adam_capturable" in refusal(overrides={"adamw": "apex"})
    assert backend.active("cuda", HALF)["weight_grad"] == "apex"


def test_a_flash_attn_that_is_too_old(libraries: dict[str, ModuleType]) -> None:
    libraries["flash_attn"].flash_attn_func = lambda q, k, v, dropout_p=0.0: q
    libraries["flash_attn"].__version__ = "2.5.9"
    assert "flash-attn 2.5.9 is too old; install flash-attn>=2.6" in refusal("flash")


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "capability", lambda: (7, 5))
    assert "attention needs a GPU of the Ampere generation" in refusal(overrides={"attention": "flash"})
    assert backend.active("cuda", HALF)["rope"] == "flash"


def test_the_other_apex(libraries: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uninstall(libraries, monkeypatch, "amp_C")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('cannot import name from pyramid.session')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "is PyPI's unrelated package of that name; install github.com/NVIDIA/apex" in refusal("apex")
    (tmp_path / "apex" / "normalization").mkdir()
    assert "apex was built without its module amp_C; build it with APEX_CPP_EXT=1 APEX_CUDA_EXT=1" in refusal("apex")


# -- rules of the configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "values", "answer"),
    [
        ("precision", {"dtype": "fp32"}, "ops.overrides.attention=flash, but flash takes bf16, fp16, not fp32; "),
        ("model", {"attention_dropout": 0.1}, "attention_dropout=0.1 asks for; write ops.overrides.attention=auto."),
        ("model", {"head_dim": 264}, "ops.overrides.attention=flash takes heads of up to 256 dimensions"),
    ],
)  # fmt: skip
def test_flash_attention_and_the_model(
    section: str, values: dict[str, object], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = Config()
    config.precision.dtype = "bf16"
    config.ops.overrides = {"attention": "flash"}
    validate(config, 1)
    for name, value in values.items():
        setattr(getattr(config, section), name, value)
    with pytest.raises(ConfigError) as caught:
        validate(config, 1)
    assert answer in str(caught.value)
    config.ops.overrides = {"attention": "auto"}
    validate(config, 1)
