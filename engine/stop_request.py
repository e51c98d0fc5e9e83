"""How a run is asked to stop: by a signal, heard between steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class StopRequest:
    """Set by Ctrl-C, SIGTERM or SIGUSR1: finish the step, save, leave. A second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
