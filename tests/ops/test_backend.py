"""The choice of backend: what is refused, what is reported, and life without the extension."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from engine.errors import ConfigError
from engine.ops import backend


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"ops.backend=refrence is unknown. Did you mean 'reference'\?"):
        backend.select("refrence")


def test_cpu_without_the_extension_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "load_error", lambda: "No module named 'engine._C'")
    with pytest.raises(ConfigError, match=r"No module named 'engine._C'.*build_ext --inplace"):
        backend.select("cpu")
    backend.select("auto")
    assert set(backend.active().values()) == {"reference"}
    assert not backend.native("rms_norm", torch.ones(1))


@pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")
def test_what_kernels_serve() -> None:
    assert backend.active()["rms_norm"] == "cpu"
    assert backend.active().keys() == set(backend.OPS)
    assert backend.native("rms_norm", torch.ones(1))
    assert backend.native("rms_norm", torch.ones(1, dtype=torch.float64))
    assert not backend.native("rms_norm", torch.ones(1, dtype=torch.int64))
    backend.select("reference")
    assert not backend.native("rms_norm", torch.ones(1))
    assert set(backend.active().values()) == {"reference"}
    backend.select("auto")


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


def test_importing_ops_loads_no_extension() -> None:
    script = (
        "import sys\n"
        "import engine.ops.adamw, engine.ops.attention, engine.ops.cross_entropy, engine.ops.norm, engine.ops.rope\n"
        "print([name for name in sys.modules if name in ('engine._C', 'triton', 'flash_attn', 'apex')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
