"""GPU readings, with a stand-in for the driver: no machine here has one."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from engine.device import Device
from engine.monitor.metrics import METRICS
from engine.monitor.nvml import Nvml

GPU = Device(torch.device("cuda", 1), "nccl")


class FakeNvml(ModuleType):
    """A driver that knows one GPU by its uuid, and no error counts."""

    NVML_TEMPERATURE_GPU = NVML_CLOCK_SM = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-12-34"
        return "handle"

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 650_000

    def nvmlDeviceGetTemperature(self, gpu: str, sensor: int) -> int:
        return 63

    def nvmlDeviceGetClockInfo(self, gpu: str, clock: int) -> int:
        return 1755

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> Any:
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetTotalEccErrors(self, gpu: str, kind: int, counter: int) -> int:
        raise RuntimeError("Not Supported")


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))


def test_what_the_driver_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("engine.monitor.nvml.time.monotonic", lambda: now[0])
    nvml = Nvml(GPU)
    told = {"gpu_power_w": 650.0, "gpu_temperature_c": 63, "gpu_clock_mhz": 1755, "gpu_busy_percent": 97}
    assert nvml.readings() == told
    assert nvml.readings() == {}  # within seconds of the last ones
    now[0] += 5
    assert nvml.readings() == told
    assert told.keys() <= METRICS.keys()


def test_nothing_without_a_gpu_or_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nvml(Device(torch.device("cpu"), "gloo")).readings() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Nvml(GPU).readings() == {}
