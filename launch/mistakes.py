"""A user's mistakes answered in one line with the nearest real key; Hydra and OmegaConf need many."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from engine.config import Config
from engine.errors import ConfigError, EngineError, did_you_mean
from launch.codes import USER_ERROR

MISTAKES = (EngineError, HydraException, OmegaConfBaseException, yaml.MarkedYAMLError)


def known_keys(of: type = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the schema, sections included."""
    for field in dataclasses.fields(of):
        key = f"{prefix}{field.name}"
        yield key
        if dataclasses.is_dataclass(field.default_factory):
            yield from known_keys(field.default_factory, f"{key}.")  # type: ignore[arg-type]


def open_keys(of: type = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose value is a mapping with keys of the user's choice, such as ops.overrides."""
    for field in dataclasses.fields(of):
        if field.default_factory is dict:
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(field.default_factory):
            yield from open_keys(field.default_factory, f"{prefix}{field.name}.")  # type: ignore[arg-type]


def check_keys(overrides: list[Override], groups: set[str]) -> None:
    """Raise ConfigError for the first override whose key is neither in the schema nor a group."""
    known, opened = {*known_keys(), *groups}, tuple(f"{key}." for key in open_keys())
    for override in overrides:
        key = override.key_or_group
        if key not in known and not key.startswith(opened) and not is_hydras(key):
            raise ConfigError(f"unknown key {key}.{_suggest(key, known)}")


def is_hydras(key: str) -> bool:
    """Say whether a key or group is of Hydra itself."""
    return key.partition(".")[0].partition("/")[0] == "hydra"


def fail(text: str) -> int:
    """Print the one line; return the exit code."""
    print(f"trimaran: {text}", file=sys.stderr)
    return USER_ERROR


def one_line(error: Exception) -> str:
    """Reduce a mistake to one line; Hydra and OmegaConf spread theirs over an error and its cause."""
    if isinstance(error, EngineError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not YAML: {error.problem}."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group} has no option {option!r}.{did_you_mean(option, error.options)}"
    cause = error.__cause__ or error.__context__
    for culprit in (error, cause):
        if isinstance(culprit, ConfigKeyError | ConfigAttributeError) and culprit.full_key:
            key = str(culprit.full_key)
            return f"unknown key {key} ({_first_line(error)}).{_suggest(key, set(known_keys()))}"
    lines = [_first_line(error)]
    if isinstance(cause, OmegaConfBaseException) and _first_line(cause) not in lines[0]:
        lines.append(_first_line(cause))
    text = ": ".join(lines).removeprefix("Error merging override ")
    single = re.fullmatch(r"(\S+?)=(.+): Invalid value assigned: \w+ is not a ListConfig, list or tuple\.", text)
    return text if single is None else f"{single[1]}={single[2]} is not a list; write {single[1]}=[{single[2]}]."


def _suggest(key: str, known: set[str]) -> str:
    """Return did_you_mean over whole keys, preferring those with the same last part (model.lr -> optim.lr)."""
    same_leaf = sorted(k for k in known if "." in k and k.rpartition(".")[2] == key.rpartition(".")[2])
    if len(same_leaf) == 1:
        return f" Did you mean '{same_leaf[0]}'?"
    hint = did_you_mean(key, known)
    return hint if hint.startswith(" Did") else " --help lists every key."


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip().rstrip(":")
