"""A sweep before it starts: where it goes, what is swept, and its points, each looked at before the first one runs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from engine.config import Config
from engine.errors import ConfigError
from launch.mistakes import MISTAKES, is_hydras, one_line
from launch.settings import CONF, Check
from launch.sweeps.points import SWEEPS, Point, point_name

_RUN_NAME = "run.name"


@dataclass(frozen=True)
class Plan:
    """A sweep called `name`, over `keys`, in `folder`.

    `points` holds the overrides of each; None: the sweeper finds them on its way. `is_local`: they run one after the
    other in this process.
    """

    folder: Path
    name: str
    keys: frozenset[str]
    points: list[list[str]] | None
    is_local: bool

    def point(self, overrides: list[str]) -> Point:
        """Return the point that `overrides` make, the whole command line of its run."""
        own = [o for o in overrides if o.split("=", 1)[0].lstrip("+~") in self.keys]
        return Point(self.folder / point_name(own), own)


def make_plan(flags: Namespace, overrides: list[Override], check: Check) -> Plan:
    """Return the sweep that a command line describes; ConfigError, naming the point, when one of them cannot run."""
    own = [override for override in overrides if not is_hydras(override.key_or_group)]
    hydras = [str(o.input_line) for o in overrides if is_hydras(o.key_or_group)]
    fixed = [str(override.input_line) for override in own if not override.is_sweep_override()]
    base = _compose(flags, [*hydras, *fixed], with_hydra=True)
    sweeper, launcher = (base.hydra.runtime.choices[f"hydra/{kind}"] for kind in ("sweeper", "launcher"))
    params = OmegaConf.to_container(base.hydra.sweeper.get("params") or OmegaConf.create())
    assert isinstance(params, dict)
    swept = [*OverridesParser.create().parse_overrides([f"{key!s}={value}" for key, value in params.items()]), *own]
    keys = frozenset(override.key_or_group for override in swept if override.is_sweep_override())
    if not keys:
        raise ConfigError("-m sweeps over nothing; write several values, as in optim.lr=1e-3,3e-4, or leave -m out.")
    if _RUN_NAME in keys:
        raise ConfigError("run.name names the whole sweep, and what is swept its points; give it one value.")
    name = str(base.run.name)
    plan = Plan(
        folder=Path(base.run.root) / SWEEPS / name, name=name, keys=keys, is_local=launcher == "basic",
        points=BasicSweeper.split_arguments(swept, None)[0] if sweeper == "basic" else None,
    )  # fmt: skip
    _check_points(plan, lambda point: _compose(flags, [*hydras, *point]), check)
    return plan


def _check_points(plan: Plan, composed: Callable[[list[str]], DictConfig], check: Check) -> None:
    wrong = []
    for number, overrides in enumerate(plan.points or [], 1):
        try:
            config = OmegaConf.to_object(composed(overrides))
            assert isinstance(config, Config)
            check(config, plan.is_local)
        except MISTAKES as error:
            wrong.append(f"point {number} ({' '.join(plan.point(overrides).overrides)}): {one_line(error)}")
    if wrong:
        more = f" {len(wrong) - 1} more of {len(plan.points or [])} points are wrong." if len(wrong) > 1 else ""
        raise ConfigError(f"{wrong[0]}{more} Nothing was started.")


def _compose(flags: Namespace, overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """Return what Hydra would compose for one run of this command line."""
    folder = CONF if flags.config_path is None else (Path(__file__).parents[1] / flags.config_path).resolve()
    found = [f"hydra.searchpath=['file://{Path(flags.config_dir).resolve()}']"] if flags.config_dir else []
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(flags.config_name or "config", [*found, *overrides], return_hydra_config=with_hydra)
