"""The choice of backend: what is refused, what is reported, and life without the extension."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from engine.errors import ConfigError
from engine.ops import backend

compiled = pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    backend.select()


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "load_error", lambda: "No module named 'engine._C'")
    backend.select()


def refusal(default: str = "auto", overrides: dict[str, str] | None = None, device_type: str = "cpu") -> str:
    with pytest.raises(ConfigError) as caught:
        backend.select(default, overrides, device_type)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("default", "overrides", "answer"),
    [
        ("refrence", {}, "ops.backend=refrence is unknown. Did you mean 'reference'?"),
        ("auto", {"rmsnorm": "cpu"}, "ops.overrides.rmsnorm=cpu: there is no op called rmsnorm. Did you mean 'rms_"),
        ("auto", {"rope": "flsh"}, "ops.overrides.rope=flsh is unknown. Did you mean 'flash'?"),
        ("apex", {}, "ops.backend=apex, but apex does not run on a cpu device; change that, or write ops.backend="),
    ],
)  # fmt: skip
def test_refusals(default: str, overrides: dict[str, str], answer: str) -> None:
    backend.select("reference")
    assert refusal(default, overrides).startswith(answer)
    assert backend.choose("rms_norm", torch.ones(1)) == "reference"  # what was selected before still holds


def test_a_refused_op_without_the_backend_names_those_it_has() -> None:
    answer = refusal(overrides={"rms_norm": "flash"})
    assert answer.startswith("ops.overrides.rms_norm=flash, but rms_norm has no such backend; choose from: apex, cpu, ")
    assert answer.endswith(", reference.")


def test_every_name_of_a_kernel_is_held_to_the_device() -> None:
    assert "cpu does not run on a cuda device" in refusal("cpu", device_type="cuda")
    assert "cpu does not run on a cuda device" in refusal(overrides={"rope": "cpu"}, device_type="cuda")
    assert "cuda does not run on a cpu device" in refusal("cuda")


@pytest.mark.usefixtures("without_extension")
def test_without_the_extension() -> None:
    for answer in (refusal("cpu"), refusal(overrides={"rms_norm": "cpu"})):
        assert "No module named 'engine._C'" in answer
        assert "`python setup.py build_ext --inplace`" in answer
    assert set(backend.active().values()) == {"reference"}
    assert not backend.native("rms_norm", torch.ones(1))
    lines = backend.describe("cpu", torch.float32)
    assert lines[0].startswith("kernels reference: activation, adafactor, ")
    assert [line.partition(", ")[0] for line in lines if "engine._C" in line] == ["kernels not cpu for activation"]


@compiled
def test_what_kernels_serve() -> None:
    assert backend.active()["rms_norm"] == "cpu"
    assert backend.active().keys() == set(backend.OPS)
    assert backend.native("rms_norm", torch.ones(1))
    assert backend.native("rms_norm", torch.ones(1, dtype=torch.float64))
    assert not backend.native("rms_norm", torch.ones(1, dtype=torch.int64))
    assert not backend.native("rms_norm", torch.ones(1, device="meta"))
    assert not backend.native("gelu", torch.ones(1))
    backend.select("reference")
    assert not backend.native("rms_norm", torch.ones(1))
    assert set(backend.active().values()) == {"reference"}


@compiled
def test_overrides_hold_for_their_op_alone() -> None:
    backend.select("cpu", {"rms_norm": "reference"})
    assert backend.choose("rms_norm", torch.ones(1)) == "reference"
    assert backend.choose("rope", torch.ones(1)) == "native"
    backend.select("reference", {"rms_norm": "auto"})
    assert backend.choose("rms_norm", torch.ones(1)) == "native"
    assert backend.choose("rope", torch.ones(1)) == "reference"
    rows = {row.op: row for row in backend.table()}
    assert rows["rms_norm"] == ("rms_norm", "cpu", {})
    assert rows["rope"] == ("rope", "reference", {"cpu": "reference was asked for"})


@compiled
def test_an_override_must_serve_the_dtype_of_the_run() -> None:
    backend.check("auto", {"normal": "cpu"}, "cpu", torch.bfloat16)  # fills float32 masters
    with pytest.raises(ConfigError, match=r"ops.overrides.activation=cpu, but cpu takes .*, not torch.int8; "):
        backend.check("auto", {"activation": "cpu"}, "cpu", torch.int8)


@compiled
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_cuda_kernels_of_an_extension_without_them() -> None:
    answer = refusal("cuda", device_type="cuda")
    assert "the extension was built without its cuda kernels; build it again where torch has CUDA" in answer


def test_an_operator_that_an_old_build_does_not_know() -> None:
    assert not backend._is_built("no_such_operator", "CPU")


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_table_is_short_and_whole(device_type: str, dtype: torch.dtype) -> None:
    lines = backend.describe(device_type, dtype)
    assert len(lines) <= 12
    running = [line.partition(": ")[2].split(", ") for line in lines if not line.startswith("kernels not")]
    assert sorted(op for ops in running for op in ops) == sorted(backend.OPS)


def test_ops_work_where_the_extension_cannot_be_imported() -> None:
    script = (
        "import sys, torch; sys.modules['engine._C'] = None\n"
        "from engine.ops import backend\n"
        "from engine.ops.activation import swiglu\n"
        "from engine.ops.philox import fill_normal_\n"
        "assert 'engine._C' in backend.load_error()\n"
        "print(swiglu(torch.zeros(2, 4)).shape, fill_normal_(torch.empty(3), 1, (3,), (0,), 1.0).isfinite().all())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "torch.Size([2, 2]) tensor(True)\n"), done.stderr


def test_importing_and_choosing_load_no_library() -> None:
    script = (
        "import sys\n"
        "import engine.ops.adamw, engine.ops.attention, engine.ops.cross_entropy, engine.ops.norm, engine.ops.rope\n"
        "names = 'engine._C', 'triton', 'flash_attn', 'apex', 'amp_C'\n"
        "print([name for name in sys.modules if name in names])\n"
        "import torch\n"
        "engine.ops.backend.describe('cpu', torch.float32)\n"
        "print([name for name in sys.modules if name in names[1:]])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n[]\n", done.stderr
