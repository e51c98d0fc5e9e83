"""Sample text from a run: python launch/generate.py run=runs/default prompt="def " [key=value ...]

Keys: run (folder of a run, its newest whole checkpoint is read), prompt, tokens=100, temperature=0.8 (0: always the
likeliest token), top_k=50 (0: all), seed=0, device=auto.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.checkpoint.reader import find_checkpoint
from engine.data.tokenizer import Tokenizer
from engine.device import Device
from engine.errors import CheckpointError, ConfigError, EngineError, did_you_mean
from engine.generate import generate, load_model

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
        if float(settings[key]) < 0:
            raise ConfigError(f"{key}={settings[key]} must not be negative.")
    return settings


def sample(settings: dict[str, str | int | float]) -> str:
    """Return the prompt and its continuation."""
    run = Path(str(settings["run"]))
    checkpoint = find_checkpoint(run / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    if checkpoint is None:
        raise CheckpointError(f"{run} holds no checkpoint yet; train it first, or write run=FOLDER.")
    if checkpoint.meta.get("tokenizer") is None:
        raise CheckpointError(f"{run} was trained without a tokenizer, so its tokens cannot be shown as text.")
    tokenizer = Tokenizer.load(run / str(checkpoint.meta["tokenizer"]))
    config = checkpoint.meta["config"]
    model = load_model(checkpoint, Device.pick(str(settings["device"])).torch_device)
    prompt = tokenizer.encode(str(settings["prompt"])) or [tokenizer.eod]
    tokens = generate(
        model, prompt, int(settings["tokens"]), context=int(config["data"]["seq_len"]),
        temperature=float(settings["temperature"]), top_k=int(settings["top_k"]), seed=int(settings["seed"]),
        vocab=tokenizer.vocab_size, stop=tokenizer.eod,
    )  # fmt: skip
    return tokenizer.decode(prompt + list(tokens))


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    try:
        print(sample(read_settings(sys.argv[1:])))
    except EngineError as error:
        print(f"trimaran: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
