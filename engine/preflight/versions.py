"""The same program everywhere: versions of Python, torch and the engine, and the extension on all ranks or on none."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from engine import __version__
from engine.monitor.starts import code_version
from engine.ops import backend
from engine.preflight.finding import FAULT, OK, WARNING, Finding, by_value
from engine.preflight.team import Team

Versions = dict[str, str]


def check_versions(team: Team) -> list[Finding]:
    """Compare the ranks' versions and extensions."""
    mine = {
        "Python": platform.python_version(), "torch": torch.__version__, "trimaran": __version__,
        "code": code_version() or "no repository",
    }  # fmt: skip
    everyone = team.gather([mine, backend.load_error()])
    versions, errors = [fact[0] for fact in everyone], [fact[1] for fact in everyone]
    return [*judge_versions(versions, team.hosts), judge_extension(errors, team.hosts)]


def judge_versions(versions: Sequence[Versions], hosts: Sequence[str]) -> list[Finding]:
    """Return a fault for each version that differs between ranks."""
    apart = [name for name in versions[0] if len({found[name] for found in versions}) > 1]
    if not apart:
        same = ", ".join(f"{name} {version}" for name, version in versions[0].items())
        return [Finding(OK, "versions", f"{same}, on {len(set(hosts))} host(s)")]
    return [
        Finding(FAULT, "versions", f"{name}: {by_value([found[name] for found in versions], hosts)}; install the same "
                "everywhere, or start from one folder that all hosts share")
        for name in apart
    ]  # fmt: skip


def judge_extension(errors: Sequence[str | None], hosts: Sequence[str]) -> Finding:
    """Say what is known of the compiled extension; `errors` [rank] say why it cannot be loaded."""
    missing = [error for error in errors if error is not None]
    if not missing:
        return Finding(OK, "extension", "compiled kernels are built and loaded")
    advice = f"({missing[0]}); build it with `python setup.py build_ext --inplace`"
    if len(missing) == len(errors):
        return Finding(WARNING, "extension", f"it cannot be loaded, so plain torch runs everything, slower {advice}")
    without = [host for host, error in zip(hosts, errors, strict=True) if error is not None]
    return Finding(
        FAULT, "extension", f"it cannot be loaded on {', '.join(dict.fromkeys(without))}, but elsewhere it can {advice}"
    )
