"""The same model at a size that a laptop trains: every trait is kept, by one rule for all presets."""

from __future__ import annotations

from dataclasses import replace

from engine.config import ModelConfig

LAYERS, HIDDEN, HEADS = 4, 256, 4
WINDOW, POSITIONS = 64, 1024


def tiny(config: ModelConfig) -> ModelConfig:
    """Return `config` with 4 layers of width 256 and 4 heads, called NAME-tiny.

    What the sizes are to each other stays as nearly as it can: heads as wide as the model or not, all kv heads, some
    (then 2) or one, the feed-forward layer's width in that of the model, and the first weights, which grow by the root
    of the width lost. The vocabulary is the tokenizer's; tables of positions and windows are short.
    """
    kv_heads = config.kv_heads or config.heads
    dim = config.head_dim or config.hidden // config.heads
    width = config.heads * dim / config.hidden  # of all heads, in that of the model
    wider = config.hidden / HIDDEN
    return replace(
        config,
        name=f"{config.name}-tiny",
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        kv_heads=None if kv_heads == config.heads else 1 if kv_heads == 1 else HEADS // 2,
        head_dim=None if width == 1 else _multiple(width * HIDDEN / HEADS, 8),
        ffn=_multiple(HIDDEN * config.ffn / config.hidden, 64),
        vocab_size=None,
        max_positions=min(config.max_positions, POSITIONS),
        attention_window=None if config.attention_window is None else min(config.attention_window, WINDOW),
        init_std=config.init_std * (wider**0.5 if config.init in ("normal", "xavier") else 1.0),
    )


def _multiple(size: float, unit: int) -> int:
    return max(1, round(size / unit)) * unit
