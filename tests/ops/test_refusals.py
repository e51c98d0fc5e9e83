"""What the kernels on the CPU cannot take they refuse in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.ops import backend
from tests.ops.refusals import REFUSALS, check_refused


@pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")
@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusal(call: Callable[[Any, Any], Any], message: str) -> None:
    check_refused(call, message, torch.device("cpu"))
