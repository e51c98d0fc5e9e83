"""The objective that a configuration names, and the tokens it needs.

A special token is known by several names, those of published tokenizers; a tokenizer that is trained for a run
reserves the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.config import DataConfig, ObjectiveConfig
from engine.errors import ConfigError, DataError
from engine.objectives.alexatm import DenoiseOrContinue
from engine.objectives.causal import Causal
from engine.objectives.example import Objective, Vocabulary
from engine.objectives.fim import FillInMiddle
from engine.objectives.glm import BlankInfilling
from engine.objectives.masked import Hiding, MaskedLM
from engine.objectives.noise import span_count
from engine.objectives.packed import Noise, Packed, text_length
from engine.objectives.prefix import PrefixLM
from engine.objectives.span_corruption import SpanCorruption
from engine.objectives.ul2 import MixtureOfDenoisers, Sequential
from engine.objectives.unified import UnifiedLM

MASK = ("[MASK]", "<mask>", "<|mask|>")
GMASK = ("[gMASK]",)
SOP = ("<sop>", "<|startofpiece|>")
EOP = ("<eop>", "<|endofpiece|>")
CLM = ("[CLM]",)
FIM = (
    ("<fim_prefix>", "<fim-prefix>", "<|fim_prefix|>", "<PRE>"),
    ("<fim_suffix>", "<fim-suffix>", "<|fim_suffix|>", "<SUF>"),
    ("<fim_middle>", "<fim-middle>", "<|fim_middle|>", "<MID>"),
)
MODES = {"R": ("[R]", "[NLU]"), "S": ("[S]", "[S2S]"), "X": ("[X]", "[NLG]")}

# Published settings; a key of `objective` that is not here is not used by that objective.
PUBLISHED: dict[str, dict[str, Any]] = {
    "causal": {},
    "prefix": {},
    "masked": {"noise": 0.15},
    "span_corruption": {"noise": 0.15, "span": 3.0},
    "ul2": {
        "denoisers": [
            {"mode": "R", "noise": 0.15, "span": 3}, {"mode": "R", "noise": 0.15, "span": 8},
            {"mode": "S", "noise": 0.25},
            {"mode": "X", "noise": 0.5, "span": 3}, {"mode": "X", "noise": 0.5, "span": 8},
            {"mode": "X", "noise": 0.15, "span": 64}, {"mode": "X", "noise": 0.5, "span": 64},
        ]
    },
    "glm": {"noise": 0.15, "span": 3.0, "endings": 0.7, "shortest_end": 0.2, "block_positions": False},
    "alexatm": {"noise": 0.15, "span": 3.0, "endings": 0.2},
    "fim": {"rate": 0.5, "spm": 0.5, "level": "character"},
    "unified": {"noise": 0.15},
}  # fmt: skip


def sentinel(number: int) -> tuple[str, ...]:
    """Return the name of T5's sentinel `number`."""
    return (f"<extra_id_{number}>",)


def published(config: ObjectiveConfig) -> dict[str, Any]:
    """Return the settings of an objective: what the configuration says, else what was published."""
    said = {key: getattr(config, key) for key in PUBLISHED[config.name]}
    return {key: PUBLISHED[config.name][key] if value is None else value for key, value in said.items()}


def make_objective(config: ObjectiveConfig, data: DataConfig, seed: int, vocabulary: Vocabulary | None) -> Objective:
    """Build the objective of a run; ConfigError when it needs a tokenizer, DataError when that lacks a token.

    A `vocabulary` of None does for objective=causal only.
    """
    if config.name == "causal":
        eod = vocabulary.eod if vocabulary else None
        return Causal(data.seq_len, eod, data.eod_loss, data.document_mask, data.position_reset)
    if vocabulary is None:
        raise ConfigError(
            f"objective={config.name} needs a tokenizer, for its special tokens; write data.tokenizer=PATH/"
            "tokenizer.json, or objective=causal."
        )
    chosen = published(config)
    if config.name == "fim":
        prefix, suffix, middle = (vocabulary.find(*names) for names in FIM)
        return FillInMiddle(
            data.seq_len, vocabulary, (prefix, suffix, middle), rate=chosen["rate"], spm=chosen["spm"],
            by_character=chosen["level"] == "character", seed=seed, document_mask=data.document_mask,
            position_reset=data.position_reset,
        )  # fmt: skip
    return Packed(
        _NOISES[config.name](chosen, data.seq_len, vocabulary), data.seq_len, filler=vocabulary.eod, seed=seed,
        by_document=data.document_mask, position_reset=data.position_reset,
    )  # fmt: skip


def special_tokens(config: ObjectiveConfig, data: DataConfig) -> list[str]:
    """Return the tokens that a tokenizer trained for this objective reserves."""
    wanted = _Wanted()
    make_objective(config, data, 0, wanted)
    return wanted.names


@dataclass
class _Wanted:
    """A vocabulary that has every token, and remembers which were looked for."""

    names: list[str] = field(default_factory=list)
    eod: int = 0
    vocab_size: int = 1

    def find(self, *names: str) -> int:
        if names[0] not in self.names:
            self.names.append(names[0])
        return 0

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, tokens: list[int]) -> str:
        return ""


def _masked(chosen: dict[str, Any], seq_len: int, vocabulary: Vocabulary) -> Noise:
    hiding = Hiding(vocabulary.find(*MASK), vocabulary.vocab_size)
    return MaskedLM(chosen["noise"], hiding, vocabulary.eod)


def _unified(chosen: dict[str, Any], seq_len: int, vocabulary: Vocabulary) -> Noise:
    hiding = Hiding(vocabulary.find(*MASK), vocabulary.vocab_size)
    return UnifiedLM(chosen["noise"], hiding, vocabulary.eod)


def _span_corruption(chosen: dict[str, Any], seq_len: int, vocabulary: Vocabulary) -> Noise:
    plain = SpanCorruption(chosen["noise"], chosen["span"], (), vocabulary.eod)
    sentinels = _sentinels(plain.spans(text_length(plain, seq_len)), seq_len, vocabulary)
    return SpanCorruption(chosen["noise"], chosen["span"], sentinels, vocabulary.eod)


def _ul2(chosen: dict[str, Any], seq_len: int, vocabulary: Vocabulary) -> Noise:
    specs = chosen["denoisers"]
    modes = {mode: vocabulary.find(*MODES[mode]) for mode in sorted({spec["mode"] for spec in specs})}

    def mixture(sentinels: list[int]) -> MixtureOfDenoisers:
        made: list[SpanCorruption | Sequential] = []
        for spec in specs:
            if spec["mode"] == "S":
                made.append(Sequential(spec["noise"], sentinels[0], vocabulary.eod, modes["S"]))
            else:
                mode = modes[spec["mode"]]
                made.append(SpanCorruption(spec["noise"], spec["span"], sentinels, vocabulary.eod, mode))
        return MixtureOfDenoisers(made, [spec.get("weight", 1.0) for spec in specs])

    length = text_length(mixture([0]), seq_len)
    most = max(1 if spec["mode"] == "S" else span_count(length, spec["noise"], spec["span"]) for spec in specs)
    return mixture(_sentinels(most, seq_len, vocabulary))


def _glm(chosen: dict[str, Any], seq_len: int, vocabulary: Vocabulary) -> Noise:
    mask, gmask, sop, eop = (vocabulary.find(*names) for names in (MASK, GMASK, SOP, EOP))
    return BlankInfilling(
        chosen["noise"], chosen["span"], chosen["endings"], chosen["shortest_end"], mask, gmask, sop, eop,
        two_positions=chosen["block_positions"],
    )  # fmt: skip


def _alexatm(chosen: dict[str, Any], seq_len: int, vocabulary: Vocabulary) -> Noise:
    return DenoiseOrContinue(chosen["noise"], chosen["span"], chosen["endings"], vocabulary.find(*CLM), vocabulary.eod)


_NOISES: dict[str, Callable[[dict[str, Any], int, Vocabulary], Noise]] = {
    "prefix": lambda chosen, seq_len, vocabulary: PrefixLM(), "masked": _masked, "span_corruption": _span_corruption,
    "ul2": _ul2, "glm": _glm, "alexatm": _alexatm, "unified": _unified,
}  # fmt: skip


def _sentinels(count: int, seq_len: int, vocabulary: Vocabulary) -> list[int]:
    found: list[int] = []
    for number in range(count):
        try:
            found.append(vocabulary.find(*sentinel(number)))
        except DataError:
            if not found:
                raise
            raise DataError(
                f"the tokenizer has {number} sentinels, <extra_id_0> to <extra_id_{number - 1}>, but data.seq_len="
                f"{seq_len} can take {count} spans; write a smaller data.seq_len or longer spans, or add sentinels."
            ) from None
    return found
