"""Any Hugging Face tokenizer.json, or a byte-level BPE trained on the corpus."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from engine.errors import DataError

_MOST_TOKENS = 1 << 24  # every id up to the highest is a row of the embedding
_PIECE = 1 << 20  # characters encoded at a time: the backend takes over 100 bytes for each
_WORD_START = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")  # not in a run of blanks, which may be one token
EOD = "<|endoftext|>"
EOD_NAMES = (EOD, "</s>", "<|end_of_text|>", "<eos>", "<|eot_id|>", "[SEP]")


class Tokenizer:
    """Encodes text to token ids and back. `eod` is the end-of-document token's id; `sha256` names the vocabulary."""

    def __init__(self, backend: Backend, source: str) -> None:
        self._backend, self._source = backend, source
        self._backend.no_padding()
        self._backend.no_truncation()
        found = [self._backend.token_to_id(name) for name in EOD_NAMES]
        ids = [token for token in found if token is not None]
        if not ids:
            raise DataError(
                f"{source} has none of the end-of-document tokens {', '.join(EOD_NAMES)}; add one as a special token."
            )
        self.eod = ids[0]
        self.vocab_size = max(self.vocabulary().values()) + 1
        if self.vocab_size > _MOST_TOKENS:
            raise DataError(f"{source} has the token id {self.vocab_size - 1}; ids up to {_MOST_TOKENS - 1} are read.")
        self.sha256 = hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json; raise DataError when it is missing or garbled."""
        if not Path(path).is_file():
            raise DataError(f"tokenizer {path} is missing; name a tokenizer.json, or write data.tokenizer=train.")
        try:
            return cls(Backend.from_file(str(path)), str(path))
        except (DataError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a panic of the backend is no Exception
            raise DataError(f"tokenizer {path} cannot be read: {_one_line(error)}") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> Tokenizer:
        """Train a byte-level BPE that reserves `special_tokens`; the same texts give the same tokenizer."""
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOD, *special_tokens],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend, "the trained tokenizer")

    def find(self, *names: str) -> int:
        """Return the id of the first of `names` that is a token; DataError when none is."""
        for name in names:
            token = self._backend.token_to_id(name)
            if token is not None:
                return token
        raise DataError(
            f"{self._source} lacks the token {' or '.join(names)}, which the objective needs; take a tokenizer that "
            "has it, or write data.tokenizer=train, which reserves it."
        )

    def save(self, path: Path) -> None:
        """Write tokenizer.json, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_text(
            self._backend.to_str(pretty=True), encoding="utf-8"
        )  # the backend's own save hides what went wrong
        os.replace(aside, path)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a long one is cut where words begin, as tokenizers do anyway."""
        try:
            parts = (self._backend.encode(piece, add_special_tokens=False).ids for piece in _pieces(text))
            return list(itertools.chain.from_iterable(parts))
        except Exception as error:
            raise DataError(f"the tokenizer cannot encode {text[:40]!r}: {_one_line(error)}") from None

    def to_json(self) -> str:
        """Return what a tokenizer.json of it says."""
        return self._backend.to_str()

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every entry, in the spelling of the vocabulary."""
        return self._backend.get_vocab(with_added_tokens=True)

    def decode(self, tokens: list[int]) -> str:
        return self._backend.decode(tokens, skip_special_tokens=False)


def _pieces(text: str) -> Iterator[str]:
    """Yield `text` in pieces of `_PIECE` characters, each longer by what is left of its last word."""
    start = 0
    while start < len(text):
        found = _WORD_START.search(text, start + _PIECE)
        stop = found.start() if found else len(text)
        yield text[start:stop]
        start = stop


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
