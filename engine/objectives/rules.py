"""Rules that tie the objective to the rest of the configuration, each a ConfigError of one line."""

from __future__ import annotations

from typing import Any

from engine.config import Config, ObjectiveConfig
from engine.errors import ConfigError, did_you_mean
from engine.objectives.choose import MODES, PUBLISHED, published, special_tokens

_LEVELS = ("character", "token")
_BYTES_AND_EOD = 257
_CAUSAL = ("causal", "fim")  # no token sees one that comes after it
_IN_PLACE = ("masked", "unified")  # labels are not shifted
_LEFT_TO_RIGHT = (*_CAUSAL, "prefix")
_BACKWARDS = ("alibi", "t5", "transformer_xl")  # positions that are distances to what came before


def check_objective(config: Config) -> None:
    """Raise ConfigError for the first rule that `config.objective` breaks."""
    o = config.objective
    if o.name not in PUBLISHED:
        raise ConfigError(f"objective.name={o.name} is unknown.{did_you_mean(o.name, PUBLISHED)}")
    _check_used(o)
    _check_values(o)
    _check_positions(config)
    if config.data.valid:
        check_left_to_right("data.valid", o)
    if o.name == "causal":
        return
    if not config.data.eod_loss:
        raise ConfigError(
            f"data.eod_loss=false has a meaning for objective=causal only, not for objective={o.name}; write "
            "data.eod_loss=true."
        )
    names = special_tokens(o, config.data)  # raises when data.seq_len has no room for them
    least = _BYTES_AND_EOD + len(names)
    if config.data.tokenizer == "train" and config.data.tokenizer_vocab < least:
        raise ConfigError(
            f"data.tokenizer_vocab={config.data.tokenizer_vocab} has no room for the {len(names)} special tokens of "
            f"objective={o.name}; write data.tokenizer_vocab={least} or more."
        )


def check_left_to_right(what: str, o: ObjectiveConfig) -> None:
    """Raise ConfigError where `what` goes token by token through what was not trained so."""
    if o.name not in _LEFT_TO_RIGHT:
        raise ConfigError(
            f"{what} goes through text from left to right, which objective={o.name} does not train; leave it out "
            "(training scores the split of data.paths by the objective itself), or use a run of objective="
            f"{' or '.join(_LEFT_TO_RIGHT)}."
        )


def _check_used(o: ObjectiveConfig) -> None:
    for key in sorted({key for keys in PUBLISHED.values() for key in keys}):
        if getattr(o, key) is not None and key not in PUBLISHED[o.name]:
            users = " or ".join(f"objective={name}" for name, keys in PUBLISHED.items() if key in keys)
            raise ConfigError(
                f"objective.{key} is not used by objective={o.name}; write objective.{key}=null or {users}."
            )


def _check_values(o: ObjectiveConfig) -> None:
    chosen = published(o)
    for key in ("noise", "shortest_end"):
        if key in chosen:
            _check_share(f"objective.{key}", chosen[key], closed=False)
    for key in ("endings", "rate", "spm"):
        if key in chosen:
            _check_share(f"objective.{key}", chosen[key], closed=True)
    if "span" in chosen:
        _check_span("objective.span", chosen["span"])
    if "level" in chosen and chosen["level"] not in _LEVELS:
        raise ConfigError(f"objective.level={chosen['level']} is unknown.{did_you_mean(str(chosen['level']), _LEVELS)}")
    if "denoisers" in chosen:
        _check_denoisers(chosen["denoisers"])


def _check_share(key: str, value: Any, *, closed: bool) -> None:
    if type(value) not in (int, float) or not (0 <= value <= 1 if closed else 0 < value < 1):
        raise ConfigError(
            f"{key}={value} is out of range; write a number from 0 to 1{'' if closed else ', between them'}."
        )


def _check_span(key: str, value: Any) -> None:
    if type(value) not in (int, float) or not 1 <= value <= 1e6:
        raise ConfigError(f"{key}={value} is out of range; write the mean length of a span, 1 or more.")


def _check_denoisers(specs: Any) -> None:
    form = "objective.denoisers=[{mode: R, noise: 0.15, span: 3, weight: 1},{mode: S, noise: 0.25}]"
    if not specs or not all(isinstance(spec, dict) for spec in specs):
        raise ConfigError(f"objective.denoisers={specs} is no list of denoisers; write such as {form}.")
    for spec in specs:
        mode = spec.get("mode")
        needed = {"mode", "noise"} if mode == "S" else {"mode", "noise", "span"}
        if mode not in MODES or not needed <= set(spec) <= needed | {"weight"}:
            raise ConfigError(
                f"objective.denoisers: {spec} must have mode R, S or X, noise, for R and X a span, and if it is not 1 "
                f"a weight; write such as {form}."
            )
        _check_share("objective.denoisers: noise", spec["noise"], closed=False)
        if "span" in spec:
            _check_span("objective.denoisers: span", spec["span"])
        if mode == "S" and spec["noise"] > 0.5:
            raise ConfigError(
                f"objective.denoisers: noise={spec['noise']} of mode S is out of range: where the end begins is drawn "
                "uniformly, so that it is half of the text in the mean at most; write noise: 0.5 or less."
            )
        weight = spec.get("weight", 1)
        if type(weight) not in (int, float) or not 0 < weight < 1e9:
            raise ConfigError(f"objective.denoisers: weight={weight} is out of range; write a number above 0.")


def _check_positions(config: Config) -> None:
    positions, two = config.model.positions, bool(config.objective.block_positions)
    if positions == "none" and config.objective.name not in _CAUSAL:
        raise ConfigError(
            f"model.positions=none tells tokens apart by a causal mask alone, but objective={config.objective.name} "
            "lets them see ahead; write model.positions=rope, learned or sinusoidal, or objective=causal."
        )
    if config.model.query_layer and config.objective.name in _IN_PLACE:
        raise ConfigError(
            f"model.query_layer=true asks for the next token, but objective={config.objective.name} predicts tokens in "
            "their own places; write model.query_layer=false, or objective=causal."
        )
    if positions in _BACKWARDS and config.objective.name not in _CAUSAL:
        raise ConfigError(
            f"model.positions={positions} are distances backwards, but objective={config.objective.name} lets tokens "
            "see ahead; write model.positions=rope, learned or sinusoidal, or objective=causal."
        )
    if two and positions != "learned_2d":
        raise ConfigError(
            f"objective.block_positions=true needs a table for them, which model.positions={positions} has not; write "
            "model.positions=learned_2d or objective.block_positions=false."
        )
    if positions == "learned_2d" and not two:
        raise ConfigError(
            f"model.positions=learned_2d has a table for places inside blanks, which objective={config.objective.name} "
            "does not give; write objective=glm objective.block_positions=true, or model.positions=learned."
        )
