"""launch/dashboard.py against a stand-in of wandb's API, which keeps what it is sent."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.monitor.metrics import EVENT, METRICS
from launch.dashboard import main


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A login, and a server that makes every view."""
    pytest.importorskip("wandb_workspaces")
    import wandb
    from wandb_workspaces.workspaces import interface, internal

    sent: list[dict[str, Any]] = []

    def execute(api: object, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        assert "upsertView" in query
        sent.append(variables)
        return {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}}

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="me"))
    for module in (interface, internal):
        monkeypatch.setattr(module, "get_app_url", lambda api: "https://wandb.example.org", raising=False)
    monkeypatch.setattr(internal, "execute_graphql", execute)
    return sent


def test_the_workspace_has_a_panel_for_every_metric(
    api: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["project=voyage"]) == 0
    [view] = api
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "voyage", "Trimaran")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    plots = [panel["config"] for section in sections for panel in section["panels"]]
    drawn = {name for plot in plots for name in plot["metrics"]}
    assert {metric.dashboard for metric in METRICS.values()} - {EVENT} <= drawn
    assert {plot["xAxis"] for plot in plots} == {"step", "consumed_tokens"}
    assert "https://wandb.example.org/me/voyage" in capsys.readouterr().out


def test_what_the_server_refuses_is_one_line(
    api: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wandb_workspaces.workspaces import internal

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("project not found\nmore lines")

    monkeypatch.setattr(internal, "execute_graphql", refuse)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trimaran: wandb did not make the workspace of project trimaran: project not found; ")
    assert error.count("\n") == 1


def test_without_a_login_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert main([]) == 2
    error = capsys.readouterr().err
    assert "wandb is not logged in; run `wandb login`" in error
    assert error.count("\n") == 1
    assert main(["projekt=x"]) == 2
    assert "Did you mean 'project'?" in capsys.readouterr().err


def test_every_metric_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(METRICS)
    for line, metric in zip(lines, METRICS.values(), strict=True):
        assert line.startswith(metric.dashboard)
        assert metric.meaning in line
