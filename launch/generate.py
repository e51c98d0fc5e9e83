"""Sample text from a run: python launch/generate.py run=runs/default prompt="def " [key=value ...]

Keys: run (a run folder, of which the newest whole checkpoint is read, or one checkpoint), prompt, tokens=100,
temperature=0.8 (0: always the likeliest token), top_k=50 (0: all), seed=0, device=auto (cpu, cuda).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.data.tokenizer import Tokenizer
from engine.device import Device
from engine.errors import CheckpointError, ConfigError, did_you_mean
from engine.generate import generate, load_model
from engine.interchange.saved import SavedModel
from engine.objectives.rules import check_left_to_right
from launch.script import run_script

DEFAULTS: dict[str, str | int | float] = {
    "run": "runs/default", "prompt": "def ", "tokens": 100, "temperature": 0.8, "top_k": 50, "seed": 0,
    "device": "auto",
}  # fmt: skip


def read_settings(arguments: list[str]) -> dict[str, str | int | float]:
    """Read key=value arguments over the defaults; raise ConfigError for unknown keys and values of another type."""
    settings = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in DEFAULTS:
            raise ConfigError(f"unknown setting '{argument}'; write key=value.{did_you_mean(key, DEFAULTS)}")
        kind = type(DEFAULTS[key])
        try:
            settings[key] = kind(value)
        except ValueError:
            raise ConfigError(f"{key}={value} is not {'a whole number' if kind is int else 'a number'}.") from None
    for key in ("tokens", "temperature", "top_k"):
        if not float(settings[key]) >= 0:  # also nan
            raise ConfigError(f"{key}={settings[key]} must be a number from 0 on.")
    return settings


def sample(settings: dict[str, str | int | float]) -> str:
    """Return the prompt and its continuation."""
    saved = SavedModel.open(Path(str(settings["run"])))
    for warning in saved.checkpoint.warnings:
        print(f"trimaran: {warning}", file=sys.stderr)
    check_left_to_right("generation", saved.objective)
    if saved.tokenizer_file is None:
        raise CheckpointError(
            f"{settings['run']} has no tokenizer.json beside its checkpoints, so its tokens cannot be shown as text."
        )
    tokenizer = Tokenizer.load(saved.tokenizer_file)
    model = load_model(saved, Device.pick(str(settings["device"])).torch_device)
    prompt = tokenizer.encode(str(settings["prompt"])) or [tokenizer.eod]
    tokens = generate(
        model, prompt, int(settings["tokens"]), context=saved.context,
        temperature=float(settings["temperature"]), top_k=int(settings["top_k"]), seed=int(settings["seed"]),
        vocab=min(saved.vocab, tokenizer.vocab_size), stop=tokenizer.eod,
    )  # fmt: skip
    return tokenizer.decode(prompt + list(tokens))


def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda given: print(sample(read_settings(given))), __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
