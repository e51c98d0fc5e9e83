"""Records as the trainer makes them."""

from __future__ import annotations

from engine.monitor.metrics import Record


def step_values(loss: float = 3.5, **changes: float) -> Record:
    return {
        "loss": loss, "grad_norm": 1.25, "lr": 3e-4, "loss_scale": 1.0, "skipped": 0, "batch_size": 8,
        "consumed_samples": 8, "consumed_tokens": 2048, "step_time_s": 0.5, "data_time_s": 0.01,
        "tokens_per_s": 4096.0, "tokens_per_s_per_device": 2048.0, "tflops_per_device": 0.05, "memory_gib": 0.5,
        **changes,
    }  # fmt: skip
