"""Hydra at the door: the schema, its help page, and mistakes answered in one line with the nearest real key.

An entry point wraps its task: ``run_with_config(task, argv)`` reads `conf/`, lets Hydra parse the command line
(overrides, --cfg, --help, -m) and calls ``task(config, overrides)`` with the typed configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from engine.config import Config
from engine.errors import ConfigError
from engine.models.presets import tiny_presets
from launch.codes import Outcome
from launch.helptext import template
from launch.mistakes import MISTAKES, check_keys, fail, one_line, open_keys

CONF = Path(__file__).resolve().parents[1] / "conf"
Task = Callable[[Config, list[str]], Outcome]
Check = Callable[[Config, bool], object]


def run_with_config(task: Task, argv: list[str], check: Check | None = None) -> int:
    """Parse `argv` (without the program's name) and run `task`; return the exit code, 2 for a user's mistake.

    `task` is called once, or with -m once per point of the sweep (`launch.sweeps`). ``check(config, here)`` raises
    ConfigError for a point that cannot run; `here` says that it would run on this machine. Without a check there are
    no sweeps.
    """
    argv = _in_order(argv)
    flags = get_args_parser().parse_args(argv)
    if flags.help or flags.hydra_help or flags.cfg or flags.info:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a page for people: `--help | head` ends quietly
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them over many lines
    try:
        overrides = _parse(flags.overrides)
        check_keys(overrides, _groups(flags))
        _register()
        if flags.multirun:
            if check is None:
                raise ConfigError(
                    "-m sweeps over runs and starts the ranks of each itself; start it with python, without torchrun, "
                    "srun or --dry-run."
                )
            from launch.sweeps.run import sweep

            return sweep(task, check, flags, overrides, lambda job: run_hydra(job, argv))
        run_hydra(_job(task), argv)
    except MISTAKES as error:
        return fail(one_line(error))
    return 0


def compose_more(overrides: list[str], flags: list[str]) -> Config:
    """Return what `overrides` make of the configuration that `flags` choose; only inside a task."""
    check_keys(_parse(overrides), _groups(get_args_parser().parse_args(flags)))
    name = get_args_parser().parse_args(flags).config_name or "config"
    config = OmegaConf.to_object(hydra.compose(name, overrides))
    assert isinstance(config, Config)
    return config


def repeat_flags(argv: list[str]) -> list[str]:
    """Return the options of `argv` that say where configuration comes from, for a process that reads it again."""
    flags = vars(get_args_parser().parse_args(_in_order(argv)))
    names = ("config_path", "config_name", "config_dir")
    return [part for name in names if flags[name] for part in (f"--{name.replace('_', '-')}", flags[name])]


def _in_order(argv: list[str]) -> list[str]:
    """Return `argv` with -m in front: argparse does not take one amid overrides."""
    sweeps = [argument for argument in argv if argument in ("-m", "--multirun")]
    return [*sweeps[:1], *(argument for argument in argv if argument not in sweeps)]


def run_hydra(job: Callable[[DictConfig], object], argv: list[str]) -> None:
    """Have Hydra read `argv` and call `job`, once or for each point of a sweep."""
    old, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    finally:
        sys.argv = old


def _job(task: Task) -> Callable[[DictConfig], None]:
    """Return what Hydra calls for a single run; a task that fails ends the process with its code."""

    def job(settings: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        try:  # Hydra would print a line of its own before passing an error on
            if hydra_config.mode == RunMode.MULTIRUN:
                raise ConfigError("hydra.mode=MULTIRUN is written -m here.")
            config = OmegaConf.to_object(settings)
            assert isinstance(config, Config)
            code = task(config, overrides).code
        except MISTAKES as error:
            code = fail(one_line(error))
        if code:
            sys.exit(code)

    return job


def _register() -> None:
    """Give Hydra the schema, so that types and keys are enforced, small versions of all models, and the help page."""
    schema = OmegaConf.structured(Config)
    for key in open_keys():
        OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    for name, small in _small_models().items():
        store.store(group="model", name=name, node=small)
    store.store(group="hydra/help", name="trimaran", node={"app_name": "trimaran", "template": template()})


@functools.cache
def _small_models() -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(small) for name, small in tiny_presets(CONF / "model").items()}


def _parse(arguments: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(arguments)
    except OverrideParseException as error:
        raise ConfigError(f"cannot read the argument {error.override!r}; write key=value or group=option.") from None


def _groups(flags: Namespace) -> set[str]:
    """Return the names of the config groups: the folders of conf/ and of --config-dir."""
    folders = [CONF] + ([Path(flags.config_dir)] if flags.config_dir else [])
    return {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()}
