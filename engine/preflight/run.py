"""The preflight of one rank: all checks, in the order in which later ones need earlier ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from engine.config import Config
from engine.data.tokenizer import Tokenizer
from engine.device import Device
from engine.errors import ConfigError, EngineError
from engine.mesh import Mesh
from engine.models.transformer import count_parameters
from engine.preflight.clocks import check_clocks
from engine.preflight.devices import check_devices
from engine.preflight.disk import check_disk
from engine.preflight.finding import FAULT, OK, Finding
from engine.preflight.folder import check_folder, run_folder
from engine.preflight.groups import check_groups
from engine.preflight.links import check_links
from engine.preflight.memory import check_memory
from engine.preflight.ports import check_ports
from engine.preflight.team import Team
from engine.preflight.versions import check_versions
from engine.validate import resolve_dp, validate


def preflight(config: Config, device: Device, say: Callable[[Finding], None], *, alone: bool) -> int:
    """Make every check on all ranks, which have joined their world; return the number of faults, the same everywhere.

    `say` hears of each finding on every rank, as soon as it is known. `alone` says that nobody has brought these ranks
    together yet, as the run's launcher will. Nothing stays in the run folder.
    """
    faults = 0
    try:
        for finding in _findings(config, device, alone):
            faults += finding.level == FAULT
            say(finding)
    except (RuntimeError, OSError) as error:  # a rank that is gone or late: nothing after this can be compared
        first = str(error).strip().splitlines()[0]
        say(Finding(FAULT, "ranks", f"a rank did not answer: {first}; look at what it printed"))
        faults += 1
    return faults


def _findings(config: Config, device: Device, alone: bool) -> Iterator[Finding]:
    store = _get_default_store()
    team = Team(store, dist.get_rank(), dist.get_world_size())
    yield from check_versions(team)
    yield from check_devices(team, device)
    yield from check_ports(team, config, alone=alone)
    yield from check_clocks(team, store)
    path = Path(config.run.root) / config.run.name
    with run_folder(path) as trouble:
        folder = check_folder(team, path, trouble)
        yield from folder
        layout = _check_layout(config, team.world)
        yield layout
        if layout.level != FAULT:
            in_folder = path if all(finding.level != FAULT for finding in folder) else None
            yield from _of_the_mesh(team, config, device, in_folder)
        team.gather(None)  # nobody takes the folder away before all are done with it


def _of_the_mesh(team: Team, config: Config, device: Device, folder: Path | None) -> Iterator[Finding]:
    """Make the checks that need to know who is who; `folder` is the run's, None where it cannot be used."""
    parallel, dp = config.parallel, resolve_dp(config, team.world)
    mesh = Mesh(pp=parallel.pp, dp=dp, cp=parallel.cp, tp=parallel.tp, device=device, timeout_s=parallel.timeout_s)
    groups = check_groups(team, mesh)
    yield from groups
    if all(finding.level != FAULT for finding in groups):
        yield from check_links(team, mesh)
    vocab = vocabulary(config)
    if folder is not None:
        yield from check_disk(team, config, folder, count_parameters(config.model, vocab))
    yield from check_memory(team, config, vocab, mesh, dp)


def _check_layout(config: Config, world: int) -> Finding:
    """Say whether the configuration can run on so many ranks."""
    try:
        validate(config, world)
    except ConfigError as error:
        return Finding(FAULT, "layout", str(error))
    p = config.parallel
    return Finding(OK, "layout", f"{world} rank(s): pp={p.pp} dp={resolve_dp(config, world)} cp={p.cp} tp={p.tp}")


def vocabulary(config: Config) -> int:
    """Return the vocabulary that the run will have, as far as it can be known before its tokenizer is made."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    entries = config.data.tokenizer_vocab
    if config.data.tokenizer not in ("train", "none"):
        with contextlib.suppress(EngineError):  # the run will say what is wrong with it
            entries = Tokenizer.load(Path(config.data.tokenizer)).vocab_size
    return -(-entries // config.model.vocab_multiple) * config.model.vocab_multiple
