"""Corpora whose files are not what was written: named when opened, when read, or by --verify; never a crash."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.data.indexed import IndexedDataset
from engine.data.preprocess import index_documents, meta_path
from engine.data.samples import Samples
from engine.data.split import make_split
from engine.data.tokenizer import Tokenizer
from engine.data.verify import fingerprint, verify
from engine.errors import DataError
from launch import preprocess
from tests.data.test_indexed import write_by_hand

TEXTS = [f"document {n}: " + "wind and sail " * (n % 7 + 3) for n in range(60)]
VOCAB = 300


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A corpus of ours."""
    Tokenizer.train(TEXTS, VOCAB).save(tmp_path / "t.json")
    index_documents(TEXTS, tmp_path / "t.json", tmp_path / "c", append_eod=True, workers=1)
    return tmp_path / "c"


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_flipped_bit_is_found_and_its_file_named(prefix: Path) -> None:
    assert verify(prefix).endswith("tokens, ids below 300, sha256 as written")
    chance = random.Random(1)
    for trial in range(64):
        path = Path(f"{prefix}.{'bin' if trial % 2 else 'idx'}")
        at = chance.randrange(8 * path.stat().st_size)
        flip(path, at)
        with pytest.raises(DataError, match=f"{prefix}") as caught:
            verify(prefix)
        assert "\n" not in str(caught.value)
        flip(path, at)
    assert verify(prefix)


def test_reading_a_damaged_index_is_refused_or_harmless_but_never_a_crash(prefix: Path) -> None:
    """What opening does not see, since it reads a handful of numbers only, is met later in the middle of a run."""
    chance, refused = random.Random(2), 0
    meta_path(prefix).unlink()
    path = Path(f"{prefix}.idx")
    for _ in range(40):
        bits = [chance.randrange(8 * 34, 8 * path.stat().st_size) for _ in range(2)]
        for at in bits:
            flip(path, at)
        try:
            dataset = IndexedDataset(prefix)
            for name in ("train", "valid"):
                split = make_split(dataset, name, [80, 20, 0], 16)
                assert split is not None
                samples = Samples([split], [1.0], 1, VOCAB)
                for index in range(split.samples):
                    sample = samples[index]
                    assert sample.window.shape == (17,)
                    assert ((sample.document_starts > 0) & (sample.document_starts < 17)).all()
        except DataError:
            refused += 1
        for at in bits:
            flip(path, at)
    assert 5 < refused < 40


def index(prefix: Path, offset: int, code: str, value: int) -> None:
    content = bytearray(Path(f"{prefix}.idx").read_bytes())
    struct.pack_into(code, content, offset, value)
    Path(f"{prefix}.idx").write_bytes(content)


DOCUMENTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4], [2, 0]]  # lengths at 34, pointers at 50, documents at 82
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a length": (lambda p: index(p, 38, "<i", 9), r"c\.idx: sequence 2 has length 6 and pointer 16, where 48 was"),
    "a negative length": (lambda p: index(p, 38, "<i", -1), r"c\.idx: sequence 1 has length -1"),
    "a pointer": (lambda p: index(p, 58, "<q", 13), r"c\.idx: sequence 1 has length 1 and pointer 13, where 12 was"),
    "the first document": (lambda p: index(p, 82, "<q", 1), r"c\.idx: the first document begins at 1, not 0"),
    "an order": (lambda p: index(p, 98, "<q", 0), r"c\.idx: document 1 ends before it begins"),
    "a negative id": (
        lambda p: write_by_hand(p, [[1], [2, -3]], 4, "<i4"),
        r"c\.bin, document 1: token id -3 is outside",
    ),
    "a large id": (lambda p: write_by_hand(p, [[1], [2, 300]], 4, "<i4"), r"document 1: token id 300 .* of 300"),
    "no tokens": (lambda p: write_by_hand(p, [], 4, "<i4"), "holds no tokens"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_without_a_sidecar_too(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "c"
    Tokenizer.train(TEXTS, VOCAB).save(tmp_path / "t.json")
    command = ["--verify", f"{prefix}.bin", "--tokenizer", str(tmp_path / "t.json")]
    write_by_hand(prefix, DOCUMENTS, 4, "<i4")
    assert preprocess.main(command) == 0
    assert "4 documents, 12 tokens, ids below 300, no sha256 to compare with" in capsys.readouterr().out
    damage, named = DAMAGE[what]
    damage(prefix)
    assert preprocess.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(DataError, match=named):
        verify(prefix, Tokenizer.load(tmp_path / "t.json"))


def test_a_corpus_is_known_wherever_it_lies(prefix: Path, tmp_path: Path) -> None:
    for ending in ("bin", "idx"):
        shutil.copy(f"{prefix}.{ending}", tmp_path / f"moved.{ending}")
    known = fingerprint(IndexedDataset(prefix))
    assert fingerprint(IndexedDataset(tmp_path / "moved")) == known
    seen = set()
    for number, documents in enumerate(([[1, 2], [3]], [[1], [2, 3]], [[1, 2], [4]], [[1, 2, 3]])):  # of one size
        write_by_hand(tmp_path / f"w{number}", documents, 4, "<i4")
        seen.add(fingerprint(IndexedDataset(tmp_path / f"w{number}")))
    assert len(seen) == 4
