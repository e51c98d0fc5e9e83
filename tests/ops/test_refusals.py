"""What the kernels on the CPU cannot take they refuse in words."""

from __future__ import annotations

import pytest
import torch

from engine.ops import backend
from tests.ops.refusals import REFUSALS, Refusal


@pytest.mark.skipif(backend.load_error() is not None, reason=f"engine._C: {backend.load_error()}")
@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_refusal(refusal: Refusal) -> None:
    refusal.check(torch.device("cpu"))
