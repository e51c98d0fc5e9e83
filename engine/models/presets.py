"""Presets: the models of `conf/model/`, and what the comment at their head says about them.

The comment is a title, then lines that begin with "published:" (the size as its makers call it, and ours), "source:"
or "uncertain:"; a line that begins with more blanks goes on with the one before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.models.tiny import tiny

NOTES = ("published", "source", "uncertain")


@dataclass(frozen=True)
class Preset:
    """One preset; notes that its file does not have are empty."""

    config: ModelConfig
    title: str
    published: str
    source: str
    uncertain: str

    @property
    def parameters(self) -> int | None:
        """The number of parameters that the head of the file states."""
        found = re.search(r"([\d,]+) parameters", self.published)
        return int(found[1].replace(",", "")) if found else None


def read_preset(path: Path) -> Preset:
    """Return the preset of a file; raise ConfigError where it is none."""
    text = path.read_text()
    try:
        values = yaml.CSafeLoader(text).get_single_data()
    except yaml.YAMLError:
        values = None
    known = {field.name for field in fields(ModelConfig)}
    if not isinstance(values, dict) or not values.keys() <= known:
        raise ConfigError(f"{path} is no preset: it must set keys of model only; python launch/pretrain.py --help.")
    notes = _notes(text)
    return Preset(ModelConfig(**values), notes["title"], *(notes.get(key, "") for key in NOTES))


def read_presets(folder: Path) -> dict[str, Preset]:
    """Return all presets of a folder by name."""
    return {path.stem: read_preset(path) for path in sorted(folder.glob("*.yaml"))}


def tiny_presets(folder: Path) -> dict[str, ModelConfig]:
    """Return a small version, called NAME-tiny, of every preset that has no such file."""
    found = read_presets(folder)
    return {
        f"{name}-tiny": tiny(preset.config)
        for name, preset in found.items()
        if not name.endswith("-tiny") and f"{name}-tiny" not in found
    }


def _notes(text: str) -> dict[str, str]:
    notes, key = {"title": ""}, "title"
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        content = line[1:]
        first, colon, rest = content.strip().partition(": ")
        if colon and first in NOTES:
            key, content = first, rest
        notes[key] = f"{notes.get(key, '')} {content.strip()}".strip()
    return notes
