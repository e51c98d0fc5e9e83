"""How many bytes of UTF-8 text each token stands for, read off the tokenizer once: what bits per byte divide by.

Special tokens stand for no text and count 0, also where a document spells one out. The space that some
tokenizers put before a text counts, being part of its first token. Tokenizers of which the bytes of a text cannot be
told from its tokens (WordPiece, say, which forgets blanks) have no such table.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.tokenizer import Tokenizer

_BLANK = "▁"  # SentencePiece's
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def token_bytes(tokenizer: Tokenizer, vocab: int) -> NDArray[np.int64] | None:
    """Return the bytes of each token, int64 [vocab]; None where the tokenizer does not say.

    Ids that the tokenizer does not know, such as the padding of a vocabulary, count 0.
    """
    plain = json.loads(tokenizer.to_json())
    kinds = set(_decoders(plain.get("decoder")))
    if "ByteLevel" in kinds:
        length = _byte_level
    elif plain["model"].get("type") in ("BPE", "Unigram") and kinds & {"Metaspace", "ByteFallback"}:
        length = _sentence_piece
    else:
        return None
    bytes_v = np.zeros(max(vocab, tokenizer.vocab_size), np.int64)
    for token, number in tokenizer.vocabulary().items():
        bytes_v[number] = length(token)
    for added in plain.get("added_tokens", []):  # they stand in the vocabulary as they are, not in its alphabet
        bytes_v[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return bytes_v


def _decoders(plain: dict[str, Any] | None) -> list[str]:
    if plain is None:
        return []
    parts = [name for part in plain.get("decoders", []) for name in _decoders(part)]
    return [plain["type"], *parts]


def _byte_level(token: str) -> int:
    return len(token)  # its alphabet has one character for each byte


def _sentence_piece(token: str) -> int:
    return 1 if _BYTE.fullmatch(token) else len(token.replace(_BLANK, " ").encode())
