"""Fill in the middle (arXiv 2207.14255, as StarCoder trains it, arXiv 2305.06161): causal, on rearranged documents.

A document is cut at two random places into prefix, middle and suffix, and told in another order:
PSM: <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
SPM: <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle
"""

from __future__ import annotations

import numpy as np

from engine.objectives.draws import Draws
from engine.objectives.example import Example, Ints, Vocabulary, document_numbers, document_positions

_ROOM = 128  # tokens of a sample for which there is room for the three marks of one document


class FillInMiddle:
    """Rearrange the share `rate` of the documents, of them the share `spm` with the suffix first.

    They are cut between characters, or between tokens where `by_character` is off or tokens end inside a character. A
    document whose marks no longer fit stays as it is; what is left of `seq_len` is filled up and not counted.
    """

    def __init__(
        self, seq_len: int, vocabulary: Vocabulary, marks: tuple[int, int, int], *, rate: float, spm: float,
        by_character: bool, seed: int, document_mask: bool, position_reset: bool,
    ) -> None:  # fmt: skip
        self.seq_len, self.vocabulary, self.marks, self.seed = seq_len, vocabulary, marks, seed
        self.rate, self.spm, self.by_character = rate, spm, by_character
        self.document_mask, self.position_reset = document_mask, position_reset
        self.stride = seq_len + 1 - len(marks) * -(-seq_len // _ROOM)

    def __call__(self, window: Ints, starts: Ints, index: int) -> Example:
        documents = self.documents(window[: self.stride], starts, index)
        sequence = np.concatenate(documents)
        used = len(sequence)
        sequence = np.pad(sequence, (0, self.seq_len + 1 - used), constant_values=self.vocabulary.eod)
        starts = np.cumsum([len(document) for document in documents])
        s = self.seq_len
        return Example(
            sequence[:-1], sequence[1:], (np.arange(1, s + 1) < used).astype(np.float32),
            positions=document_positions(starts, s) if self.position_reset else None,
            documents=document_numbers(starts, s) if self.document_mask else None,
        )  # fmt: skip

    def documents(self, text: Ints, starts: Ints, index: int) -> list[Ints]:
        """Return the documents of a sample, some rearranged, of `seq_len` + 1 tokens at most together."""
        draws, told = Draws(self.seed, index), []
        left, room = len(text), self.seq_len + 1
        for document in np.split(text, starts[starts < len(text)]):
            left -= len(document)
            if draws.chance(self.rate):
                rearranged = self._rearranged(document, draws)
                if len(rearranged) <= room - left:
                    document = rearranged
            room -= len(document)
            told.append(document)
        return told

    def _rearranged(self, document: Ints, draws: Draws) -> Ints:
        body = document[:-1] if document[-1] == self.vocabulary.eod else document
        prefix, middle, suffix = self._cut(body.tolist(), draws)
        first, last, between = self.marks
        if draws.chance(self.spm):
            order = [first, last, *suffix, between, *prefix, *middle]
        else:
            order = [first, *prefix, last, *suffix, between, *middle]
        return np.asarray([*order, *document[len(body) :]], dtype=np.int64)

    def _cut(self, tokens: list[int], draws: Draws) -> list[list[int]]:
        text = self.vocabulary.decode(tokens) if self.by_character else ""
        whole = self.by_character and "\ufffd" not in text
        size = len(text) if whole else len(tokens)
        one, two = sorted(draws.below(size + 1) for _ in range(2))
        if whole:
            return [self.vocabulary.encode(part) for part in (text[:one], text[one:two], text[two:])]
        return [tokens[:one], tokens[one:two], tokens[two:]]
