"""Show the models that presets describe.

    python launch/models.py          a table of all: parameters (in billions, ours), size as published, traits, source
    python launch/models.py NAME     one of them: its source, what is uncertain, its traits and where its parameters are

Train one with model=NAME, or with model=NAME-tiny: the same traits at a size that a laptop trains.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import ModelConfig
from engine.errors import ConfigError, did_you_mean
from engine.models.presets import Preset, read_presets, tiny_presets
from engine.models.summary import family, parameters_by_place, traits
from engine.monitor.flops import flops_per_token
from launch.script import run_script

FOLDER = Path(__file__).resolve().parents[1] / "conf" / "model"
_TINY_VOCAB = 4096  # of presets that take the tokenizer's: its default size


def table(presets: dict[str, Preset]) -> str:
    """Return a line a preset, in columns."""
    rows = [("model", "family", "parameters", "active", "published", "traits", "source")]
    for name, preset in presets.items():
        size = f"{preset.parameters / 1e9:.2f}B" if preset.parameters else "-"
        published, source = (text.partition(";")[0] or "-" for text in (preset.published, preset.source))
        rows.append((name, family(preset.config), size, size, published, traits(preset.config), source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def page(preset: Preset) -> str:
    """Return what there is to say of one model."""
    config = preset.config
    vocab = config.vocab_size or _TINY_VOCAB
    places = parameters_by_place(config, vocab)
    total = sum(places.values())
    flops = flops_per_token(config, vocab, config.max_positions)
    changed = {key: value for key, value in asdict(config).items() if value != _DEFAULTS[key]}
    lines = [
        f"{config.name}: {preset.title}" if preset.title else config.name,
        "",
        *(f"{key:<11} {text}" for key, text in _notes(preset) if text),
        f"{'family':<11} {family(config)}",
        f"{'traits':<11} {traits(config)}",
        f"{'parameters':<11} {total:,}, all of them active, with {vocab:,} tokens",
        *(f"{'':<11} {place:<13} {count:>20,}  {count / total:6.1%}" for place, count in places.items()),
        f"{'FLOPs':<11} {flops:.3g} a token of training, in sequences of {config.max_positions}",
        f"{'settings':<11} {' '.join(f'model.{key}={_plain(value)}' for key, value in changed.items())}",
    ]
    return "\n".join(lines)


_DEFAULTS = {field.name: field.default for field in fields(ModelConfig)}


def _plain(value: object) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _notes(preset: Preset) -> list[tuple[str, str]]:
    return [("published", preset.published), ("source", preset.source), ("uncertain", preset.uncertain)]


def show(arguments: list[str]) -> None:
    """Print the table, or the page of the model that is named."""
    presets = read_presets(FOLDER)
    if not arguments:
        print(table(presets))
        return
    small = {name: Preset(config, "", "", "", "") for name, config in tiny_presets(FOLDER).items()}
    known = {**presets, **small}
    for name in arguments:
        if name not in known:
            raise ConfigError(f"there is no model called '{name}'.{did_you_mean(name, known)}")
        print(page(known[name]))


def main(arguments: list[str] | None = None) -> int:
    return run_script(show, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
