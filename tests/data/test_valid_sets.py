"""Every token of a validation set is predicted once, and mistakes in data.valid are said in one line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import DataConfig
from engine.data.indexed import IndexedDataset, IndexedWriter
from engine.data.tokenizer import Tokenizer
from engine.data.valid_sets import ValidSet, Windows, open_valid_sets
from engine.errors import ConfigError, DataError

EOD = 99


@pytest.mark.parametrize("eod", [EOD, None])
@pytest.mark.parametrize("seq_len", [1, 4, 6, 30])
def test_every_token_is_predicted_once_from_the_one_before_it(tmp_path: Path, seq_len: int, eod: int | None) -> None:
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for begin, end in ((0, 5), (5, 6), (6, 13)):
            writer.add(np.arange(begin, end))
    windows = Windows(IndexedDataset(tmp_path / "c"), seq_len, eod, 100)
    stream = [*([] if eod is None else [eod]), *range(13)]
    pairs = []
    for number in range(len(windows)):
        sample = windows[number]
        assert 2 <= len(sample.window) <= seq_len + 1
        pairs += list(zip(sample.window[:-1].tolist(), sample.window[1:].tolist(), strict=True))
        begins = {place for place, token in enumerate(sample.window.tolist()) if place and token in (0, 5, 6)}
        assert set(sample.document_starts.tolist()) == begins
    assert pairs == list(itertools.pairwise(stream))


def open_sets(folder: Path, tokenizer_file: Path | None, **valid: Any) -> list[ValidSet]:
    config = DataConfig(valid=valid, cache_dir=str(folder / "cache"), workers=1, seq_len=8)
    tokenizer = Tokenizer.load(tokenizer_file) if tokenizer_file else None
    return open_valid_sets(
        config, tokenizer, tokenizer_file, 300, is_writer=True, barrier=lambda: None, notice=lambda text: None
    )


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    Tokenizer.train(["the sea and the wind"] * 9, 280).save(tmp_path / "tokenizer.json")
    for name, text in (("a.txt", "the sea"), ("b.txt", "the wind and the sea"), ("empty.txt", "")):
        (tmp_path / name).write_text(text)
    return tmp_path / "tokenizer.json"


def test_paths_are_one_text_and_weights_are_shares(tmp_path: Path, tokenizer_file: Path) -> None:
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    one, many, blend = open_sets(tmp_path, tokenizer_file, one=a, many=[a, b], blend=[[3, a], [1, b]])
    assert (one.name, one.shares, len(one.parts)) == ("one", None, 1)
    assert (many.shares, len(many.parts)) == (None, 2)
    assert (blend.shares, len(blend.parts)) == ([3.0, 1.0], 2)


@pytest.mark.parametrize(
    ("valid", "kind", "named"),
    [
        ({"a b": "x"}, ConfigError, "a set cannot be called 'a b'"),
        ({"books": []}, ConfigError, r"data.valid.books=\[\] is no set"),
        ({"books": [[0, "x"]]}, ConfigError, "data.valid.books: the weight of x is 0"),
        ({"books": "nowhere/*.txt"}, DataError, "data.valid.books: no file is called 'nowhere/"),
        ({"books": "EMPTY"}, DataError, "there is no text in .*empty.txt: 1 documents, all of them empty"),
    ],
)
def test_mistakes_name_the_set(
    tmp_path: Path, tokenizer_file: Path, valid: dict[str, Any], kind: type[Exception], named: str
) -> None:
    chosen = {name: str(tmp_path / "empty.txt") if value == "EMPTY" else value for name, value in valid.items()}
    with pytest.raises(kind, match=named):
        open_sets(tmp_path, tokenizer_file, **chosen)


def test_text_without_a_tokenizer_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"text needs a tokenizer\.json"):
        open_sets(tmp_path, None, books=str(tmp_path / "a.txt"))
    config = DataConfig(valid={"books": str(tmp_path / "a.txt")}, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"tokenizer .*gone\.json is missing"):
        open_valid_sets(config, None, tmp_path / "gone.json", 300, is_writer=True, barrier=lambda: None, notice=print)
