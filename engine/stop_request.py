"""How a run is asked to stop: by a signal, heard between steps."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from types import FrameType
from typing import Any, Self


class SignalListener(ABC):
    """Hears the signals `numbers` in place of the process's own handlers, which are put back in the end."""

    numbers: tuple[signal.Signals, ...]

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in self.numbers:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: the terminal may close, the run goes on
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    @abstractmethod
    def _note(self, number: int, frame: FrameType | None) -> None:
        """Take up a signal."""


class StopRequest(SignalListener):
    """Set by Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2: finish the step, save, leave. A second Ctrl-C ends the process."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # USR2: submitit's, of each process

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.by_machine = False  # by_machine: not, or not only, by Ctrl-C

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.by_machine |= number != signal.SIGINT
        self.asked = True
