"""The loss, perplexity and bits per byte of validation sets, the same on every layout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.config import DataConfig
from engine.data.samples import Sample
from engine.data.token_bytes import token_bytes
from engine.data.tokenizer import Tokenizer
from engine.data.valid_sets import Part, ValidSet
from engine.evaluate.forward import Forward
from engine.objectives.causal import Causal


@dataclass(frozen=True)
class Score:
    """What came of a set: `loss` in nats per token, mean over `tokens` predictions whose text has `bytes` bytes.

    `bits_per_byte` and `bytes` are None where the tokenizer does not say what its tokens stand for. In a blend,
    `loss` and `bits_per_byte` are weighted; `tokens` and `bytes` are those that were scored.
    """

    loss: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None

    @property
    def perplexity(self) -> float:
        """Return exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def metrics(self) -> dict[str, float]:
        """Return the numbers that are logged, by name."""
        found = {"loss": self.loss, "perplexity": self.perplexity}
        return found if self.bits_per_byte is None else {**found, "bits_per_byte": self.bits_per_byte}


class SetScorer:
    """Scores the sets of data.valid with the weights as they are. All ranks call its methods together."""

    def __init__(self, config: DataConfig, sets: list[ValidSet], tokenizer: Tokenizer | None, forward: Forward) -> None:
        self._sets, self._forward = sets, forward
        self._objective = Causal(config.seq_len, tokenizer.eod if tokenizer else None, config.eod_loss)
        vocab = max((part.vocab for chosen in sets for part in chosen.parts), default=0)
        self._bytes_v = token_bytes(tokenizer, vocab) if tokenizer is not None and sets else None

    def scores(self) -> dict[str, Score]:
        """Return the score of each set, in the order of the configuration."""
        return {chosen.name: score_set(self._forward, chosen, self._objective, self._bytes_v) for chosen in self._sets}


def score_set(forward: Forward, chosen: ValidSet, objective: Causal, bytes_v: NDArray[np.int64] | None) -> Score:
    """Score every window of a set. `objective` says which tokens count, `bytes_v` the bytes of each token."""
    sums = [_sum_part(forward, part, objective, bytes_v) for part in chosen.parts]
    # A blend holds tokens of its corpora by shares: each token counts share / tokens of its corpus.
    factors = [1.0] * len(sums) if chosen.shares is None else [
        share / max(1, total.tokens) for share, total in zip(chosen.shares, sums, strict=True)
    ]  # fmt: skip
    loss, tokens, text = (
        sum(factor * getattr(total, name) for factor, total in zip(factors, sums, strict=True))
        for name in ("loss", "tokens", "bytes")
    )
    return Score(
        loss=loss / tokens if tokens else 0.0,
        bits_per_byte=None if bytes_v is None or not text else loss / math.log(2) / text,
        tokens=sum(total.tokens for total in sums),
        bytes=None if bytes_v is None else sum(total.bytes for total in sums),
    )


@dataclass
class _Sum:
    loss: float = 0.0
    tokens: int = 0
    bytes: int = 0


def _sum_part(forward: Forward, part: Part, objective: Causal, bytes_v: NDArray[np.int64] | None) -> _Sum:
    total = _Sum()
    for first in range(0, len(part), forward.round_size):
        samples = [part[n] for n in range(first, min(first + forward.round_size, len(part)))]
        for sample, scores in zip(samples, forward.score(samples), strict=True):
            counted = _counted(sample, objective)
            total.loss += float(scores.losses[counted].sum())
            total.tokens += int(counted.sum())
            total.bytes += 0 if bytes_v is None else int(bytes_v[sample.window[1:][counted]].sum())
    return total


def _counted(sample: Sample, objective: Causal) -> NDArray[np.bool_]:
    """Return which of the predicted tokens enter the loss."""
    example = objective(sample.window, sample.document_starts)
    return np.ones(len(example.labels), np.bool_) if example.loss_mask is None else example.loss_mask > 0
