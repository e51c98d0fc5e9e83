"""What the time of a step goes to, by the phases that the flight record goes through (`engine.flight.phases`).

On a CPU the time that this rank waits for others is known and told apart. On a GPU the times are those of the device's
main stream, on which collectives over tp are part of the passes that they belong to; a profile tells them apart.
"""

from __future__ import annotations

import threading
from typing import Any

from engine.device import Device
from engine.flight import phases
from engine.flight.recorder import FLIGHT, Listener

COMPUTE, COMMUNICATION, BUBBLE, OPTIMIZER, DATA = "compute", "communication", "bubble", "optimizer", "data"
PARTS = (COMPUTE, COMMUNICATION, BUBBLE, OPTIMIZER, DATA)

_PART_OF = {
    phases.DATA: DATA, phases.FORWARD: COMPUTE, phases.BACKWARD: COMPUTE, phases.P2P: BUBBLE,
    phases.REDUCE: COMMUNICATION, phases.NORM: OPTIMIZER, phases.OPTIMIZER: OPTIMIZER,
}  # fmt: skip


class PhaseClock:
    """Listens to the flight record from `begin` to `end`, which all steps go through; `pipelined`: there are stages."""

    def __init__(self, device: Device, *, pipelined: bool) -> None:
        self._device, self._pipelined = device, pipelined
        self._marks: list[tuple[str, Any, float]] = []  # phase, when it began, seconds waited until then
        self._others: Listener | None = None
        self._thread = threading.get_ident()

    def begin(self) -> None:
        """Start a step."""
        self._marks, self._others = [], FLIGHT.listener
        FLIGHT.listener = self._on_phase

    def end(self) -> dict[str, float]:
        """Return the seconds of each part of the step so far, up to the phase that goes on now."""
        FLIGHT.listener = self._others
        parts = dict.fromkeys(PARTS, 0.0)
        if self._marks:
            self._device.wait_for(self._marks[-1][1])
        for (name, start, before), (_, stop, after) in zip(self._marks, self._marks[1:], strict=False):
            self._book(parts, name, self._device.seconds_between(start, stop), after - before)
        return parts

    def _book(self, parts: dict[str, float], name: str, seconds: float, waited: float) -> None:
        part = _PART_OF.get(name)
        if part is None:
            return
        # The stages that are through first wait for the last one where the norm is summed up over all.
        waits = BUBBLE if name == phases.P2P or (name == phases.NORM and self._pipelined) else COMMUNICATION
        waited = 0.0 if self._device.is_cuda else min(waited, seconds)
        parts[waits] += waited
        parts[part] += seconds - waited

    def _on_phase(self, name: str, step: int) -> None:
        if threading.get_ident() == self._thread:  # a save in the background goes through phases of its own
            self._marks.append((name, self._device.mark(), FLIGHT.waited_s))
        if self._others is not None:
            self._others(name, step)
