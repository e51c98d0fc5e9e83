"""Likelihood of text and continuations of it, by a model that scores windows of tokens on any layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from engine.data.samples import Sample
from engine.data.tokenizer import Tokenizer
from engine.evaluate.forward import TokenScores
from engine.generate import draw


class Scorer(Protocol):
    """What `engine.evaluate.forward.Forward` gives."""

    def score(self, windows: Sequence[Sample]) -> list[TokenScores]: ...

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Continuing:
    """How a continuation is drawn (temperature 0: the likeliest tokens), and the texts that end it."""

    count: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


class TextModel:
    """A language model of text. It sees up to `context` tokens; rows of the vocabulary from `vocab` on are padding."""

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, context: int, vocab: int) -> None:
        self.scorer, self.tokenizer, self.context = scorer, tokenizer, context
        self.vocab = min(vocab, tokenizer.vocab_size)

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return log p(continuation | context) in nats and whether greedy decoding would write it, of each pair.

        An empty context is the start of a document. Tokens are those of the two texts together; blanks at the end
        of a context belong to the continuation, as the words that follow them do.
        """
        return self._log_likelihoods([self._encode(*pair) for pair in pairs])

    def documents(self, texts: Sequence[str]) -> list[float]:
        """Return log p(text) in nats of each whole document, each of its tokens predicted once with all it can see."""
        spans = [([self.tokenizer.eod, *self.tokenizer.encode(text)], 1) for text in texts]
        return [total for total, _ in self._log_likelihoods(spans)]

    def generate(self, prompts: Sequence[str], how: Sequence[Continuing]) -> list[str]:
        """Return what follows each prompt: up to the first of its stops, the end of the document, or its count."""
        prompt_tokens = [self.tokenizer.encode(prompt) or [self.tokenizer.eod] for prompt in prompts]
        written: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        active = [n for n in range(len(prompts)) if how[n].count > 0]
        while active:
            rows = self.scorer.next_logits([[*prompt_tokens[n], *written[n]][-self.context :] for n in active])
            going = []
            for n, row_v in zip(active, rows, strict=True):
                h = how[n]
                token = draw(row_v[: self.vocab], h.temperature, h.top_k, h.seed, len(written[n]))
                if token == self.tokenizer.eod:
                    continue
                written[n].append(token)
                texts[n], ended = _cut(self._text_after(prompt_tokens[n], written[n]), h.stops)
                if not ended and len(written[n]) < h.count:
                    going.append(n)
            active = going
        return texts

    def _text_after(self, prompt: list[int], written: list[int]) -> str:
        """Decode together: some tokenizers write the first token of a text without its blank."""
        tail = prompt[-self.context :]
        return self.tokenizer.decode([*tail, *written])[len(self.tokenizer.decode(tail)) :]

    def _encode(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Return the tokens, and the first of them that belongs to the continuation."""
        if not context:
            return [self.tokenizer.eod, *self.tokenizer.encode(continuation)], 1
        kept = context.rstrip()
        tokens = self.tokenizer.encode(context + continuation)
        first = len(self.tokenizer.encode(kept))
        return (tokens, first) if first else ([self.tokenizer.eod, *tokens], 1)

    def _log_likelihoods(self, spans: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Return of each (tokens, first): the log-likelihood of tokens[first:], and whether all were the likeliest."""
        blocks = [
            (number, begin, first, stop)
            for number, (tokens, start) in enumerate(spans)
            for begin, first, stop in windows(len(tokens), start, self.context)
        ]
        blocks.sort(key=lambda block: block[3] - block[1])  # windows of a batch are filled up to one length
        samples = [Sample(np.asarray(spans[n][0][begin:stop], np.int64), _NONE) for n, begin, _, stop in blocks]
        totals, greedy = [0.0] * len(spans), [True] * len(spans)
        for (number, begin, first, _), found in zip(blocks, self.scorer.score(samples), strict=True):
            counted = slice(first - begin - 1, None)
            totals[number] -= float(found.losses[counted].sum())
            greedy[number] &= bool(found.is_top[counted].all())
        return list(zip(totals, greedy, strict=True))


_NONE = np.zeros(0, np.int64)


def windows(count: int, first: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, first, stop): tokens [first, stop) are predicted from tokens [begin, stop - 1).

    Tokens [first, count) of `count` are predicted once each, at most `context` at a time, with as many tokens before
    them as the context holds.
    """
    while first < count:
        stop = min(count, first + context)
        yield max(0, stop - 1 - context), first, stop
        first = stop


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first of the stops, and whether there was one."""
    places = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
