"""profile.steps: the steps that are profiled."""

from __future__ import annotations

import re

from engine.errors import ConfigError


def profiled_steps(written: str | None, steps: int) -> tuple[int, int] | None:
    """Return the first and the last step of `first:last`, None for none; ConfigError where it is none of `steps`."""
    if written is None:
        return None
    found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", written)
    if found is None:
        minutes = f"{int(written) // 60}:{int(written) % 60:02d}" if written.isdecimal() else "10:12"
        raise ConfigError(
            f"profile.steps={written} is no range of steps; write profile.steps='{minutes}', in a YAML file with the "
            "quotes: without them YAML reads 10:12 as ten minutes and twelve seconds, 612."
        )
    first, last = int(found[1]), int(found[2])
    if not 1 <= first <= last <= steps:
        raise ConfigError(
            f"profile.steps={written} is not within the steps of the run, 1 to train.steps={steps}; write "
            "profile.steps='first:last', both included, as the console counts them."
        )
    return first, last
