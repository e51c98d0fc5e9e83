"""Weights & Biases: never asks, never stops training, and a resumed run goes on under the same id."""

from __future__ import annotations

import netrc
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from engine.monitor.metrics import EVENT, INFO, METRICS, Record


class WandbSink:
    """Sends records to wandb in `mode` (auto | offline | online), keeping its files in the run folder.

    Any failure of wandb is told once through `notify` and ends its use, not the training. Points are plotted over
    `step`: wandb's own step may not go back, but a run resumed after a crash does. Every point also holds the tokens
    consumed until then, to be chosen as the other axis.
    """

    def __init__(
        self, mode: str, project: str, folder: Path, config: dict[str, Any], notify: Callable[[str], None],
        group: str | None = None,
    ) -> None:  # fmt: skip
        self.mode, self.project, self.folder, self.config, self.notify = mode, project, folder, config, notify
        self._run: Any = None
        self.group = group
        self._step: float = 0
        self._tokens: float | None = None  # consumed at the newest step

    def begin(self, step: int, total: int, timeline: int = 0) -> None:
        self._step = step
        self._try(self._start)

    def log(self, record: Record) -> None:
        self._step, self._tokens = record["step"], record.get("consumed_tokens", self._tokens)
        if self._run is not None:
            if self._tokens is not None:
                record = {"consumed_tokens": self._tokens, **record}
            named = {METRICS[key].dashboard if key in METRICS else key: value for key, value in record.items()}
            self._try(lambda: self._run.log(named))

    def event(self, text: str, level: str = INFO) -> None:
        """Make a warning or an error an alert, which wandb also sends by mail or chat, and a note at its step.

        The console shows the others.
        """
        if self._run is not None and level != INFO:
            place = {"step": self._step} | ({} if self._tokens is None else {"consumed_tokens": self._tokens})
            self._try(lambda: self._run.log({**place, EVENT: text}))
        if self._run is not None and level != INFO:
            title = f"{self.folder.name}: {text.partition(': ')[0]}"
            self._try(lambda: self._run.alert(title=title[:63], text=text, level=level.upper()))

    def close(self) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish())
        self._run = None

    def _start(self) -> None:
        import wandb  # here, not above: only those who use it wait for it

        mode = choose_mode(self.mode)
        if self.mode == "online" and mode == "offline":
            self.notify("wandb: not logged in, so the run is recorded offline; `wandb sync` uploads it later")
        self._run = wandb.init(
            mode=mode, project=self.project, name=self.folder.name, id=run_id(self.folder), resume="allow",
            group=self.group, dir=str(self.folder), config=self.config,
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # it has been seen to leave the process, too
            self._run = None
            self.notify(f"wandb failed and is off for the rest of this run: {type(error).__name__}: {error}")


def choose_mode(mode: str) -> Any:
    """Return offline or online: what WANDB_MODE says for auto, and offline wherever wandb would have to ask."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "online")
    return "online" if mode == "online" and is_logged_in() else "offline"


def is_logged_in() -> bool:
    """Return whether wandb has credentials for its server: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(folder: Path) -> str:
    """Return the run's wandb id, made once and kept in the run folder."""
    path = folder / "wandb_id"
    if path.exists() and (known := path.read_text().strip()):
        return known
    fresh = uuid.uuid4().hex[:8]
    aside = path.with_name("wandb_id.tmp")
    aside.write_text(fresh)
    os.replace(aside, path)
    return fresh
