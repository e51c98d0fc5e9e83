"""FLOPs of a token, peak FLOP/s of a device, and what they say about a step.

A matrix product with a weight costs 6 FLOPs per weight and token in training: 2 in the forward pass, 4 in the
backward pass. Attention adds 12 * layers * heads * head_dim * seq_len, the two products with the full square of
positions, as PaLM counts it (arXiv 2204.02311, appendix B) although half of it is masked: so MFU compares with what
torchtitan, nanoGPT and the literature report. Embedding look-ups, norms and recomputation do not count.
"""

from __future__ import annotations

from engine.config import ModelConfig
from engine.device import Device
from engine.models.registry import ACTIVATIONS

# Dense 16-bit tensor TFLOP/s from the makers' data sheets; the first name contained in the device's name counts.
_PEAK_TFLOPS = (
    ("GB200", 2500.0), ("B200", 2250.0), ("B100", 1750.0), ("GH200", 989.4), ("H200", 989.4),
    ("H100 PCIe", 756.5), ("H100 NVL", 835.5), ("H100", 989.4), ("H800", 989.4), ("H20", 148.0),
    ("A100", 312.0), ("A800", 312.0), ("A40", 149.7), ("A30", 165.0), ("A10G", 70.0), ("A10", 125.0),
    ("L40S", 362.1), ("L40", 181.1), ("L4", 121.0), ("V100", 125.0), ("T4", 65.0),
    ("RTX 5090", 209.5), ("RTX 4090", 165.2), ("RTX 3090", 71.2), ("RTX A6000", 154.8),
    ("MI325X", 1307.4), ("MI300X", 1307.4), ("MI250X", 191.5),
)  # fmt: skip


def matrix_weights(model: ModelConfig, vocab: int) -> int:
    """Return how many weights multiply every token: all matrices, the output projection, no look-up tables."""
    dim = model.head_dim or model.hidden // model.heads
    kv_heads = model.kv_heads or model.heads
    attention = model.hidden * dim * 2 * (model.heads + kv_heads)  # q and out, k and v
    mlp = (3 if ACTIVATIONS.get(model.activation).gated else 2) * model.hidden * model.ffn
    return model.layers * (attention + mlp) + vocab * model.hidden


def flops_per_token(model: ModelConfig, vocab: int, seq_len: int) -> int:
    """Return the FLOPs of training on one token of a sequence of `seq_len`."""
    dim = model.head_dim or model.hidden // model.heads
    return 6 * matrix_weights(model, vocab) + 12 * model.layers * model.heads * dim * seq_len


def peak_tflops(device_name: str) -> float | None:
    """Return the peak 16-bit TFLOP/s of a device by its name; None when it is not in the table."""
    return next((peak for name, peak in _PEAK_TFLOPS if name.lower() in device_name.lower()), None)


class Flops:
    """Turns (tokens, seconds) of a step into rates."""

    def __init__(self, model: ModelConfig, vocab: int, seq_len: int, peak_tflops_given: float, device: Device) -> None:
        self.per_token = flops_per_token(model, vocab, seq_len)
        self.peak = peak_tflops_given or (peak_tflops(device.describe()) if device.is_cuda else None)

    def rates(self, tokens: int, seconds: float, ranks: int) -> dict[str, float]:
        """Return the throughput metrics of a step of all `ranks`; `mfu_percent` only where the peak is known."""
        tflops = tokens * self.per_token / seconds / ranks / 1e12
        rates = {
            "tokens_per_s": tokens / seconds,
            "tokens_per_s_per_device": tokens / seconds / ranks,
            "tflops_per_device": tflops,
        }
        if self.peak:
            rates["mfu_percent"] = 100.0 * tflops / self.peak
        return rates
