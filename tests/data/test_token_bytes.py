"""Bytes of tokens: they add up to the bytes of the text."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from engine.data.token_bytes import token_bytes
from engine.data.tokenizer import EOD, Tokenizer

TEXTS = ["the sea, the wind", "naïve café, 鯨 🐳", "  blanks\n\tand\u00a0ends ", "x"]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_add_up_to_the_text(text: str) -> None:
    tokenizer = Tokenizer.train(["the sea, the wind and naïve café"] * 9, 300)
    bytes_v = token_bytes(tokenizer, 320)
    assert bytes_v is not None
    assert len(bytes_v) == 320
    assert bytes_v[tokenizer.encode(text)].sum() == len(text.encode())
    assert bytes_v[tokenizer.eod] == 0, "a special token is no text"
    assert bytes_v[tokenizer.vocab_size :].sum() == 0


def test_sentence_pieces_count_their_blanks_and_single_bytes() -> None:
    pieces = [("<unk>", 0.0), (EOD, 0.0), ("▁the", -1.0), ("▁", -2.0), ("é", -3.0), ("<0xE9>", -4.0)]
    backend = Backend(models.Unigram(pieces, 0))
    backend.add_special_tokens(["<unk>", EOD])
    backend.decoder = decoders.Metaspace()
    bytes_v = token_bytes(Tokenizer(backend, "test"), 8)
    assert bytes_v is not None
    assert bytes_v.tolist() == [0, 0, 4, 1, 2, 1, 0, 0]


def test_a_tokenizer_that_forgets_blanks_has_no_table() -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, EOD: 1, "sea": 2, "##s": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert token_bytes(Tokenizer(backend, "test"), 4) is None
