"""Positions against what transformers computes for published models, and what attention is written out for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.config import ModelConfig
from engine.models.attention import written_out
from engine.models.positions.alibi import slopes
from engine.models.positions.sinusoidal import sinusoids
from engine.models.positions.t5 import buckets_of
from engine.ops.gradient import as_input
from engine.ops.key_ranges import KeyRanges
from engine.ops.rope import Stretch, rope_tables


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 112])
def test_slopes_are_blooms(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)[:, 0, 1]  # of a key at distance 1
    torch.testing.assert_close(torch.tensor(slopes(heads)), theirs)


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (16, 64), (32, 100)])
def test_buckets_are_t5s(buckets: int, longest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(600)
    theirs = T5Attention._relative_position_bucket(-distances, False, buckets, longest)
    assert torch.equal(buckets_of(distances, buckets, longest), theirs)


@pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
def test_scaling_is_llamas(factor: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope: dict[str, Any] = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_theta=500000.0, rope_scaling=rope,
                         max_position_embeddings=131072)  # fmt: skip
    positions = torch.tensor([[0, 1, 77, 5000, 100000]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    ours = rope_tables(positions, 128, 500000.0, Stretch(factor))
    # an angle of 100,000 radians in float32 is known to 0.004
    torch.testing.assert_close(ours[0], cos[..., :64], rtol=0, atol=0.02)
    torch.testing.assert_close(ours[1], sin[..., :64], rtol=0, atol=0.02)
    torch.testing.assert_close(ours[1][:, :3], sin[:, :3, :64], rtol=0, atol=2e-5)


def test_sinusoids() -> None:
    waves = sinusoids(torch.tensor([0, 3]), 4)
    torch.testing.assert_close(waves[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    expected = torch.tensor([3.0, 0.03]).double()
    torch.testing.assert_close(waves[1].double(), torch.cat([expected.sin(), expected.cos()]), rtol=1e-6, atol=0)


def test_windows_inside_documents() -> None:
    keys = KeyRanges.documents(torch.tensor([[0, 0, 0, 1, 1, 1]])).within(2)
    assert keys.first_bs.tolist() == [[0, 0, 1, 3, 3, 4]]
    assert keys.last_bs.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert not keys.is_causal


def test_windows_are_two_sided_where_tokens_see_ahead() -> None:
    keys = KeyRanges.documents(torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool)).within(2)
    assert keys.first_bs.tolist() == [[0, 0, 1, 2, 3]]
    assert keys.last_bs.tolist() == [[1, 2, 3, 4, 4]]


def test_a_weight_as_input_delivers_one_gradient() -> None:
    weight, told = nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), list[str]()
    weight.main_grad = torch.ones(3)  # type: ignore[attr-defined]
    weight.grad_ready = lambda: told.append("ready")  # type: ignore[attr-defined]
    x = as_input(weight)
    (x * 2 + x * 3).sum().backward()
    assert told == ["ready"]
    assert weight.grad is None
    assert weight.main_grad.tolist() == [6.0] * 3


def test_attention_is_written_out_for_what_kernels_do_not_know() -> None:
    assert written_out(ModelConfig(positions="alibi", attention_window=3, attention_scale=1.0)) == []
    assert written_out(ModelConfig(positions="t5")) == ["model.positions=t5"]
    both = ModelConfig(positions="transformer_xl", attention_dropout=0.1, attention_softcap=30.0)
    assert written_out(both) == [
        "model.attention_dropout=0.1", "model.attention_softcap=30", "model.positions=transformer_xl",
    ]  # fmt: skip
