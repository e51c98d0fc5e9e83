"""Hydra at the door: the schema, its help page, and mistakes answered in one line with the nearest real key.

An entry point wraps its task: ``run_with_config(task, argv)`` reads `conf/`, lets Hydra parse the command line
(overrides, --cfg, --help, -m) and calls ``task(config, overrides)`` with the typed configuration.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from engine.config import Config
from engine.errors import ConfigError, EngineError, did_you_mean
from engine.models.presets import tiny_presets
from launch.helptext import template

CONF = Path(__file__).resolve().parents[1] / "conf"
Task = Callable[[Config, list[str]], int]
_MISTAKES = (EngineError, HydraException, OmegaConfBaseException, yaml.MarkedYAMLError)


def run_with_config(task: Task, argv: list[str]) -> int:
    """Parse `argv` (without the program's name) and run `task`; return the exit code, 2 for a user's mistake.

    `task` is called once, or with -m once per point of the sweep, each in a run folder of its own, until one
    returns other than 0.
    """
    flags = get_args_parser().parse_args(argv)
    if flags.help or flags.hydra_help or flags.cfg or flags.info:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a page for people: `--help | head` ends quietly
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them over many lines
    try:
        overrides = _parse(flags.overrides)
        _check_keys(overrides, _groups(flags))
        _register()
        _run_hydra(task, argv, [override for override in overrides if override.is_sweep_override()])
    except _MISTAKES as error:
        return _fail(_one_line(error))
    return 0


def compose_more(overrides: list[str], flags: list[str]) -> Config:
    """Return what `overrides` make of the configuration that `flags` choose; only inside a task."""
    _check_keys(_parse(overrides), _groups(get_args_parser().parse_args(flags)))
    name = get_args_parser().parse_args(flags).config_name or "config"
    config = OmegaConf.to_object(hydra.compose(name, overrides))
    assert isinstance(config, Config)
    return config


def repeat_flags(argv: list[str]) -> list[str]:
    """Return the options of `argv` that say where configuration comes from, for a process that reads it again."""
    flags = vars(get_args_parser().parse_args(argv))
    names = ("config_path", "config_name", "config_dir")
    return [part for name in names if flags[name] for part in (f"--{name.replace('_', '-')}", flags[name])]


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


def _run_hydra(task: Task, argv: list[str], swept: list[Override]) -> None:
    """Hand over to Hydra; a task that fails ends the process with its code."""

    def job(settings: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        if hydra_config.mode == RunMode.MULTIRUN:
            name = _sweep_name(settings.run.name, swept, overrides)
            settings.run.name = name
            overrides = [o for o in overrides if not o.startswith("run.name=")] + [f"run.name='{name}'"]
        try:  # Hydra would print a line of its own before passing an error on
            config = OmegaConf.to_object(settings)
            assert isinstance(config, Config)
            code = task(config, overrides)
        except _MISTAKES as error:
            code = _fail(_one_line(error))
        if code:
            sys.exit(code)

    old, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    finally:
        sys.argv = old


def _register() -> None:
    """Give Hydra the schema, so that types and keys are enforced, small versions of all models, and the help page."""
    schema = OmegaConf.structured(Config)
    for key in open_keys():
        OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    for name, small in tiny_presets(CONF / "model").items():
        store.store(group="model", name=name, node=dataclasses.asdict(small))
    store.store(group="hydra/help", name="trimaran", node={"app_name": "trimaran", "template": template()})


def _sweep_name(name: str, swept: list[Override], overrides: list[str]) -> str:
    """Return a run name that differs between the points of a sweep and is the same when it is started again."""
    keys = {override.key_or_group for override in swept}
    if "run.name" in keys:
        return name
    point = [override for override in overrides if override.split("=", 1)[0].lstrip("+") in keys]
    return "-".join([name, *(re.sub(r"[^\w.=+,-]", "_", override) for override in point)])


# -- mistakes ------------------------------------------------------------------------------------------------


def _fail(text: str) -> int:
    print(f"trimaran: {text}", file=sys.stderr)
    return 2


def _parse(arguments: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(arguments)
    except OverrideParseException as error:
        raise ConfigError(f"cannot read the argument {error.override!r}; write key=value or group=option.") from None


def _groups(flags: Namespace) -> set[str]:
    """Return the names of the config groups: the folders of conf/ and of --config-dir."""
    folders = [CONF] + ([Path(flags.config_dir)] if flags.config_dir else [])
    return {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()}


def _check_keys(overrides: list[Override], groups: set[str]) -> None:
    """Raise ConfigError for the first override whose key is neither in the schema nor a group."""
    known, opened = {*known_keys(), *groups}, tuple(f"{key}." for key in open_keys())
    for override in overrides:
        key = override.key_or_group
        if key not in known and not key.startswith(opened) and key.partition(".")[0].partition("/")[0] != "hydra":
            raise ConfigError(f"unknown key {key}.{_suggest(key, known)}")


def _suggest(key: str, known: set[str]) -> str:
    """Return did_you_mean over whole keys, preferring those with the same last part (model.lr -> optim.lr)."""
    same_leaf = sorted(k for k in known if "." in k and k.rpartition(".")[2] == key.rpartition(".")[2])
    if len(same_leaf) == 1:
        return f" Did you mean '{same_leaf[0]}'?"
    hint = did_you_mean(key, known)
    return hint if hint.startswith(" Did") else " --help lists every key."


def _one_line(error: Exception) -> str:
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip().rstrip(":")
