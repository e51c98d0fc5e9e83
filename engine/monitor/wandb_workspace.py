"""A workspace of Weights & Biases with a panel for each metric, made through wandb's own API (wandb-workspaces)."""

from __future__ import annotations

from typing import Any

from engine.errors import ConfigError, printable
from engine.monitor.metrics import EVENT, METRICS
from engine.monitor.wandb_sink import is_logged_in

_STEP, _TOKENS = "step", "consumed_tokens"

# Sections by the keys of their metrics; a metric that is in none has a panel in the last one.
SECTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "Loss": (("loss",), ("valid_loss",), ("valid_perplexity",), ("lr",)),
    "Norms": (("grad_norm",), ("param_norm",)),
    "Stability": (("skipped",), ("alerts",), ("timeline",), ("loss_scale",)),
    "Speed": (
        ("tokens_per_s",), ("tokens_per_s_per_device",), ("mfu_percent",), ("tflops_per_device",), ("goodput",),
        ("step_time_s", "compute_time_s", "communication_time_s", "bubble_time_s", "optimizer_time_s", "data_time_s"),
    ),
    "Memory and GPU": (
        ("memory_gib",), ("gpu_power_w",), ("gpu_temperature_c",), ("gpu_clock_mhz",), ("gpu_busy_percent",),
        ("gpu_ecc_errors",),
    ),
}  # fmt: skip


def panels() -> dict[str, list[tuple[str, ...]]]:
    """Return the sections with the names in wandb of what each panel draws; every metric with numbers is in one."""
    shown = {key for section in SECTIONS.values() for panel in section for key in panel}
    left = tuple((key,) for key in METRICS if key not in shown and METRICS[key].dashboard != EVENT)
    return {
        title: [tuple(METRICS[key].dashboard for key in panel) for panel in section]
        for title, section in {**SECTIONS, "More": left}.items()
    }


def make_workspace(project: str, entity: str, name: str) -> str:
    """Make the workspace and return its address; ConfigError with a way out where it cannot be made.

    `entity` "" is the one of the login.
    """
    if not is_logged_in():
        raise ConfigError(
            "wandb is not logged in; run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL for a server of your "
            "own), then start this again."
        )
    try:
        import wandb
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; run pip install wandb-workspaces.") from None

    def draw(names: tuple[str, ...], over: str) -> Any:
        title = names[0] if over == _STEP else f"{names[0]} over tokens"
        return reports.LinePlot(title=title, x=over, y=list(names), log_y=False)

    sections = []
    for title, drawn in panels().items():
        plots = [draw(names, _STEP) for names in drawn]
        if title == "Loss":
            plots += [draw(names, _TOKENS) for names in drawn[:2]]
        sections.append(workspaces.Section(name=title, panels=plots, is_open=title != "More"))
    try:
        owner = entity or str(wandb.Api().default_entity)
        made = workspaces.Workspace(entity=owner, project=project, name=name, sections=sections).save()
    except Exception as error:  # of wandb's, requests' or its own: refused, unknown project, no network
        first = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        raise ConfigError(
            f"wandb did not make the workspace of project {project}: {first}; check the network, and that the project "
            "exists: a run with monitor.wandb=online makes it."
        ) from None
    return str(made.url)
