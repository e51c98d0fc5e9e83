"""Dynamic loss scaling for fp16 (arXiv 1710.03740): all of its state is what the metrics of a step say."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import EngineError


@dataclass
class LossScaler:
    """Multiplies the loss so that small fp16 gradients survive; `scale` is 1 and fixed unless `dynamic`.

    Every rank updates its own copy from the same reduced gradient norm, so all stay equal.
    """

    scale: float = 1.0
    dynamic: bool = False
    window: int = 1000
    minimum: float = 1.0
    clean_steps: int = 0

    def update(self, overflow: bool) -> None:
        """Halve after an overflow, double after `window` clean steps; raise EngineError below the minimum."""
        if not self.dynamic:
            return
        if overflow:
            self.scale, self.clean_steps = self.scale / 2.0, 0
            if self.scale < self.minimum:
                raise EngineError(
                    f"fp16 gradients overflow even at the smallest loss scale precision.min_loss_scale={self.minimum}: "
                    "lower optim.lr, or train with precision=bf16."
                )
            return
        self.clean_steps += 1
        if self.clean_steps >= self.window:
            self.scale, self.clean_steps = self.scale * 2.0, 0

    def state(self) -> dict[str, float | int]:
        return {"scale": self.scale, "clean_steps": self.clean_steps, "dynamic": self.dynamic}

    def load(self, state: dict[str, float | int]) -> None:
        """Go on with a saved scale, unless it was the 1 of a run in another precision."""
        if self.dynamic and state["dynamic"]:
            self.scale, self.clean_steps = float(state["scale"]), int(state["clean_steps"])
