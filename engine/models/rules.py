"""Which traits of a model do not go together; `engine.validate` asks before the first rank allocates memory.

Each rule raises ConfigError with one line: the fields, their values, and what to write instead.
"""

from __future__ import annotations

from engine.config import ModelConfig
from engine.errors import ConfigError


def check_traits(m: ModelConfig) -> None:
    """Raise ConfigError for the first rule `m` breaks."""
    if m.positions == "rope":
        _check_rope(m)
    _check_positions(m)
    _check_windows(m)


def _check_positions(m: ModelConfig) -> None:
    if m.positions in ("sinusoidal", "transformer_xl") and m.hidden % 2:
        raise ConfigError(
            f"model.positions={m.positions} needs an even width, but model.hidden={m.hidden}; write "
            f"model.hidden={m.hidden + 1}."
        )
    if m.positions == "t5" and m.relative_distance <= m.relative_buckets // 2:
        raise ConfigError(
            f"model.relative_distance={m.relative_distance} is not above half of model.relative_buckets="
            f"{m.relative_buckets}; write model.relative_distance={4 * m.relative_buckets}."
        )
    if m.query_layer and m.positions != "learned":
        raise ConfigError(
            f"model.query_layer=true takes queries from a table of positions, but model.positions={m.positions}; write "
            "model.positions=learned or model.query_layer=false."
        )


def _check_windows(m: ModelConfig) -> None:
    if m.window_interval > m.layers:
        raise ConfigError(
            f"model.window_interval={m.window_interval} is more than model.layers={m.layers}: no layer would have the "
            f"window; write model.window_interval={m.layers} or less."
        )
    if m.window_interval > 1 and m.attention_window is None:
        raise ConfigError(
            f"model.window_interval={m.window_interval} says which layers have a window, but model.attention_window is "
            "null; write model.attention_window=256 or model.window_interval=1."
        )


def _check_rope(m: ModelConfig) -> None:
    dim = m.head_dim or m.hidden // m.heads
    turned = dim * m.rope_fraction
    if m.rope_fraction == 1.0 and dim % 2:
        raise ConfigError(
            f"model.positions=rope rotates pairs, but a head has {dim} dimensions (model.head_dim, or model.hidden / "
            f"model.heads); write model.head_dim={dim + 1}."
        )
    if abs(turned - round(turned)) > 1e-6 or round(turned) % 2 or turned < 2:
        pairs = max(1, round(turned / 2))
        raise ConfigError(
            f"model.rope_fraction={m.rope_fraction:g} of a head's {dim} dimensions (model.head_dim, or model.hidden / "
            f"model.heads) is {turned:g}, which is no number of pairs; write model.rope_fraction={2 * pairs / dim:g}."
        )
    if m.rope_scaling_high <= m.rope_scaling_low:
        raise ConfigError(
            f"model.rope_scaling_high={m.rope_scaling_high:g} is not above model.rope_scaling_low="
            f"{m.rope_scaling_low:g}; write model.rope_scaling_high={4 * m.rope_scaling_low:g}."
        )
