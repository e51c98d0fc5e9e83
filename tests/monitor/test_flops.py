"""FLOPs of a token against a count of every product torch makes, and the rates that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.config import ModelConfig
from engine.device import Device
from engine.monitor.flops import Flops, flops_per_token, peak_tflops
from tests.layouts import GPT, LLAMA, VOCAB, initial_weights, make_config
from tests.oracle import PlainModel

CPU = Device(torch.device("cpu"), "gloo")


@pytest.mark.parametrize("model", [LLAMA, GPT, {**LLAMA, "tied_embeddings": False}, {**LLAMA, "head_dim": 24}])
def test_every_product_of_a_step_is_counted(model: dict[str, Any]) -> None:
    """A whole forward and backward pass of the plain model makes exactly these FLOPs in matrix products."""
    traits = make_config(model={**model, "hidden_dropout": 0.0}).model
    plain = PlainModel(traits, initial_weights(traits, seed=1), seed=1)
    tokens_bs = torch.arange(2 * 16).view(2, 16) % VOCAB
    with FlopCounterMode(display=False) as counter:
        plain.loss(tokens_bs, tokens_bs, torch.ones(2, 16)).backward()
    assert counter.get_total_flops() == tokens_bs.numel() * flops_per_token(traits, VOCAB, 16)


def test_published_model() -> None:
    """PaLM's formula on Llama 2 7B at 4096 positions, from its published number of parameters."""
    llama = ModelConfig(layers=32, hidden=4096, heads=32, ffn=11008, vocab_size=32000, tied_embeddings=False)
    weights = 6_738_415_616 - 32000 * 4096 - (2 * 32 + 1) * 4096  # without look-up table and norms
    assert flops_per_token(llama, 32000, 4096) == 6 * weights + 12 * 32 * 4096 * 4096


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA L4", 121.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("Some Future GPU", None),
    ],
)
def test_peak_by_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_rates() -> None:
    model = ModelConfig()
    flops = Flops(model, 4096, 256, 0.0, CPU)
    rates = flops.rates(tokens=2048, seconds=0.5, ranks=2)
    assert rates["tokens_per_s"] == 4096
    assert rates["tokens_per_s_per_device"] == 2048
    assert rates["tflops_per_device"] == pytest.approx(2048 * flops_per_token(model, 4096, 256) / 1e12)
    assert "mfu_percent" not in rates  # nobody knows the peak of a CPU
    told = Flops(model, 4096, 256, 0.2, CPU).rates(tokens=2048, seconds=0.5, ranks=2)
    assert told["mfu_percent"] == pytest.approx(100 * rates["tflops_per_device"] / 0.2)
