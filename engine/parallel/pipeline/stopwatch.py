"""When a stage ran each action of a step, by the clock of its own device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.device import Device
from engine.parallel.pipeline.schedule import Action


@dataclass(frozen=True)
class Timed:
    """An action and its time, in seconds since `Stopwatch.start`; the wait for its input is left out."""

    action: Action
    start: float
    end: float


class Stopwatch:
    """Costs nothing but a look at a flag until it is started."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._zero: Any = None
        self._noted: list[tuple[Action, Any, Any]] | None = None

    def start(self) -> None:
        """Note every action from now on. Stages that start together have one zero."""
        self._noted, self._zero = [], self._device.mark()

    def mark(self) -> Any:
        """Return this moment, None when nothing is being noted."""
        return None if self._noted is None else self._device.mark()

    def note(self, action: Action, begin: Any) -> None:
        """Note that `action` ran from the mark `begin` until now."""
        if self._noted is not None:
            self._noted.append((action, begin, self._device.mark()))

    def stop(self) -> list[Timed]:
        """Return the actions since `start`, in their order, and note no more; waits for the device."""
        self._device.synchronize()
        noted, zero = self._noted or [], self._zero
        self._noted = self._zero = None
        between = self._device.seconds_between
        return [Timed(action, between(zero, begin), between(zero, end)) for action, begin, end in noted]
