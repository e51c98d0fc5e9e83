"""What NVIDIA's driver says of a GPU (NVML): power, temperature, clock, utilisation, memory errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from engine.device import Device
from engine.monitor.metrics import Record

_EVERY = 5.0  # seconds between readings: a query takes up to milliseconds


class Nvml:
    """Reads one GPU, now and then; nothing where there is no NVML, and no longer what the driver refuses."""

    def __init__(self, device: Device) -> None:
        self._queries: dict[str, Callable[[], float]] = {}
        self._last = -_EVERY
        if device.is_cuda:
            self._queries = _open(device.torch_device)

    def readings(self) -> Record:
        """Return the metrics that can be read; none within a few seconds of the last readings."""
        now = time.monotonic()
        if not self._queries or now - self._last < _EVERY:
            return {}
        self._last, found = now, {}
        for key, query in list(self._queries.items()):
            try:
                found[key] = query()
            except Exception:  # NVMLError, of a class that only the library has: this GPU or driver cannot say
                del self._queries[key]
        return found


def _open(device: torch.device) -> dict[str, Callable[[], float]]:
    """Return a query for each metric; none when the library or the driver is missing."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        # by its uuid: NVML numbers all GPUs of the node, whatever CUDA_VISIBLE_DEVICES says
        gpu: Any = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # ImportError, or NVMLError for a missing driver: readings are no reason to stop
        return {}
    return {
        "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "gpu_temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "gpu_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "gpu_busy_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "gpu_ecc_errors": lambda: nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    }
