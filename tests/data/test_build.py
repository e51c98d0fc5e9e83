"""From text files to samples: caching, formats, tokenizers, and every kind of bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.config import DataConfig, ObjectiveConfig
from engine.data.build import DataBundle, build_data
from engine.data.corpus import Skipped, builtin_files, documents
from engine.data.indexed import IndexedDataset
from engine.data.preprocess import index_documents, open_index, read_meta
from engine.data.tokenizer import Tokenizer
from engine.errors import ConfigError, DataError, DiskError
from launch import preprocess

TEXTS = [f"document {n}: " + "wind and sail " * (n % 7 + 3) for n in range(60)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    return path


def build(tmp_path: Path, notes: list[str] | None = None, vocab: int | None = None, **changes: Any) -> DataBundle:
    settings: dict[str, Any] = {
        "cache_dir": str(tmp_path / "cache"), "tokenizer_vocab": 300, "seq_len": 16, "workers": 1,
        "split": [80, 20, 0], **changes,
    }  # fmt: skip
    notice: Callable[[str], None] = (lambda note: None) if notes is None else notes.append
    return build_data(
        DataConfig(**settings), ObjectiveConfig(), 1, vocab, 64, is_writer=True, barrier=lambda: None, notice=notice
    )


def test_jsonl_is_indexed_once_and_found_again(tmp_path: Path, text: Path) -> None:
    notes: list[str] = []
    first = build(tmp_path, notes, paths=[str(text)])
    assert any("60 documents" in note for note in notes)
    assert first.tokenizer is not None
    assert first.vocab == 320
    assert first.tokenizer.decode(first.train[0].window.tolist())
    again: list[str] = []
    second = build(tmp_path, again, paths=[str(text)])
    assert again == []
    assert (second.train[7].window == first.train[7].window).all()
    text.write_text(json.dumps({"text": "other " * 400}))
    changed: list[str] = []
    build(tmp_path, changed, paths=[str(text)], split=[1, 0, 0])
    assert changed, "a changed source must be indexed again"


def test_every_document_comes_back_from_the_index(tmp_path: Path, text: Path) -> None:
    bundle = build(tmp_path, paths=[str(text)])
    assert bundle.tokenizer is not None
    dataset = bundle.train.splits[0].dataset
    for number, expected in enumerate(TEXTS):
        ids = dataset.read(dataset.document_start(number), dataset.document_start(number + 1)).tolist()
        assert ids[-1] == bundle.tokenizer.eod
        assert bundle.tokenizer.decode(ids[:-1]) == expected


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, 300).save(tmp_path / "t.json")
    written = []
    for workers in (1, 2):
        prefix = tmp_path / f"w{workers}"
        index_documents(TEXTS, tmp_path / "t.json", prefix, append_eod=True, workers=workers)
        written.append((Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()))
    assert written[0] == written[1]


def test_progress_is_shown_on_terminals_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log on a full disk must not stop the indexing."""
    Tokenizer.train(TEXTS, 300).save(tmp_path / "t.json")
    with open("/dev/full", "w") as log:
        monkeypatch.setattr("sys.stdout", log)
        index_documents(TEXTS, tmp_path / "t.json", tmp_path / "c", append_eod=True, workers=1, show=True)
    assert IndexedDataset(tmp_path / "c").documents == len(TEXTS)


def test_formats_and_globs(tmp_path: Path) -> None:
    for number, t in enumerate(TEXTS):
        (tmp_path / f"{number:03d}.txt").write_text(t)
    globbed = build(tmp_path, paths=[str(tmp_path / "*.txt")])
    prefix = tmp_path / "mine"
    assert preprocess.main([str(tmp_path / "*.txt"), "--output", str(prefix), "--vocab", "300", "--workers", "1"]) == 0
    given = build(tmp_path, paths=[f"{prefix}.bin"], tokenizer=f"{prefix}.tokenizer.json")
    assert (given.train[3].window == globbed.train[3].window).all()
    blend = build(tmp_path, paths=[[3, str(prefix)], [1, str(prefix)]], tokenizer=f"{prefix}.tokenizer.json")
    assert [blend.train.locate(k)[0] for k in range(4)].count(0) == 3


def test_indexing_ahead_says_what_it_cannot_do(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for words, told in (
        ([str(text), "--output", f"{text}/x"], f"{text}/x cannot be written: File exists; make room there, or"),
        ([str(tmp_path / "latin.txt"), "--output", f"{tmp_path}/x"], "latin.txt: 1 texts with bad UTF-8."),
        (["nowhere.txt", "--output", f"{tmp_path}/x"], "no file is called 'nowhere.txt'"),
    ):
        assert preprocess.main([*words, "--workers", "1", "--vocab", "300"]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_indexed_data_without_a_tokenizer_needs_a_vocabulary(tmp_path: Path, text: Path) -> None:
    prefix = build(tmp_path, paths=[str(text)]).train.splits[0].dataset.prefix
    assert build(tmp_path, vocab=512, paths=[prefix], tokenizer="none").vocab == 512
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        build(tmp_path, paths=[prefix], tokenizer="none")
    with pytest.raises(DataError, match=r"document \d+: token id \d+ is outside the vocabulary of 9"):
        build(tmp_path, vocab=9, paths=[prefix], tokenizer="none").train[0]
    with pytest.raises(DataError, match="tokenizer=train needs text"):
        build(tmp_path, paths=[prefix])


def test_another_tokenizer_than_the_corpus_was_made_with_is_refused(tmp_path: Path, text: Path) -> None:
    prefix = build(tmp_path, paths=[str(text)]).train.splits[0].dataset.prefix
    Tokenizer.train(["quite other words"], 290).save(tmp_path / "other.json")
    with pytest.raises(DataError, match="indexed with another tokenizer"):
        build(tmp_path, paths=[prefix], tokenizer=str(tmp_path / "other.json"))


def test_a_model_smaller_than_the_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size=100 is smaller than the tokenizer's 300"):
        build(tmp_path, vocab=100, paths=[str(text)])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"paths": ["nowhere/*.txt"]}, DataError, "no file is called 'nowhere/"),
        ({"format": "jsonn"}, ConfigError, "Did you mean 'jsonl'"),
        ({"format": "text"}, ConfigError, "needs files"),
        ({"paths": [["a", "b", "c"]]}, ConfigError, "neither a path nor a pair"),
        ({"paths": ["{text}"], "tokenizer": "nowhere.json"}, DataError, "tokenizer nowhere.json is missing"),
        ({"paths": ["{text}"], "tokenizer": "{text}"}, DataError, "cannot be read"),
        ({"paths": ["{text}"], "jsonl_key": "body"}, DataError, "no line has a text field 'body'"),
        ({"paths": ["{text}"], "tokenizer": "none"}, ConfigError, "needs a tokenizer.json"),
        ({"paths": ["{empty}"]}, DataError, r"no text in .*empty\.txt: 1 documents, all of them empty"),
        ({"paths": ["{latin}"]}, DataError, r"no text in .*latin\.txt: 1 texts with bad UTF-8\."),
        ({"paths": [[0, "{text}"]]}, ConfigError, r"weight of .*corpus\.jsonl is 0; write a number above 0"),
        ({"paths": [["nan", "{text}"]]}, ConfigError, "neither a path nor a pair"),
        ({"paths": [[float("nan"), "{text}"]]}, ConfigError, "is nan; write a number above 0"),
        ({"paths": ["{half}"], "tokenizer": "none"}, DataError, r"half\.idx is missing"),
        ({"paths": ["{text}"], "cache_dir": "{text}/x"}, DiskError, "/x cannot be written: Not a directory"),
    ],
)
def test_bad_input_gets_one_line(
    tmp_path: Path, text: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "half.bin").write_bytes(b"")
    names = {"half": tmp_path / "half", "text": text, "empty": tmp_path / "empty.txt", "latin": tmp_path / "latin.txt"}

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(v) for v in value]
        return value.format(**names) if isinstance(value, str) else value

    with pytest.raises(error, match=message) as caught:
        build(tmp_path, **{key: fill(value) for key, value in changes.items()})
    assert "\n" not in str(caught.value)


def test_bad_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\nnot json\n\n{"text": "\xff"}\n{"text": ""}\n{"text": "last"}\n')
    skipped = Skipped()
    assert list(documents([path], "jsonl", "text", skipped)) == ["good", "", "last"]
    assert skipped.describe() == "1 lines of bad JSON, 1 texts with bad UTF-8"


def test_hostile_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "first, after a byte order mark"}', b"[" * 100_000, b"9" * 5000, b"\0" * 9,
        b'{"text": "half a character: \\ud800"}', b'{"text": "NUL \\u0000 is text"}', b'{"text": NaN}',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    skipped = Skipped()
    found = list(documents([path], "jsonl", "text", skipped))
    assert found == ["first, after a byte order mark", "NUL \0 is text"]
    assert skipped == Skipped(bad_json=3, bad_utf8=1, no_text=1)
    tokenizer = Tokenizer.train(TEXTS, 300)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in found] == found


def test_long_texts_are_encoded_in_pieces_to_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    long = "\n".join(TEXTS) + "\n\n  wind\n" + "sail" * 50 + "\n\u6f22 \u5b57  \t x" * 20
    whole = tokenizer.encode(long)
    monkeypatch.setattr("engine.data.tokenizer._PIECE", 40)
    assert tokenizer.encode(long) == whole
    assert tokenizer.encode("") == []


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def change(good: bytes) -> bytes:
        plain = json.loads(good)
        edit(plain)
        return json.dumps(plain).encode()

    return change


@pytest.mark.parametrize(
    "garble",
    [
        lambda good: b"", lambda good: b"{", lambda good: good[: len(good) // 2], lambda good: b"\xff\xfe" + good,
        lambda good: b"[" * 100_000, lambda good: b"\x80\x04\x95." + good,
        _edited(lambda plain: plain.pop("model")),
        _edited(lambda plain: plain["model"].update(merges=[["no", "such"]])),
        _edited(lambda plain: plain["model"]["vocab"].update(huge=2**32 - 1)),
        _edited(lambda plain: plain["model"]["vocab"].update(negative=-1)),
        _edited(lambda plain: plain.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    ],
)  # fmt: skip
def test_garbled_tokenizers_are_refused_in_one_line(tmp_path: Path, garble: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "t.json"
    Tokenizer.train(TEXTS, 300).save(path)
    path.write_bytes(garble(path.read_bytes()))
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_a_text_that_a_tokenizer_cannot_encode_is_an_error_of_the_data(tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, 300).save(tmp_path / "t.json")
    plain = json.loads((tmp_path / "t.json").read_text())
    plain["model"] = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "[UNK]"}
    (tmp_path / "t.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match="the tokenizer cannot encode 'wind'"):
        Tokenizer.load(tmp_path / "t.json").encode("wind")


def test_lines_without_text_are_told_of(tmp_path: Path) -> None:
    lines = [{"text": t} for t in TEXTS] + [{"body": "lost"}, ["lost"]]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    notes: list[str] = []
    build(tmp_path, notes, paths=[str(tmp_path / "x.jsonl")])
    assert any(note.endswith("left out: 2 lines without the text field") for note in notes)


def test_a_glob_reads_each_file_by_its_ending(tmp_path: Path) -> None:
    """JSON lines among text files are documents, not text to learn with its braces."""
    for number, t in enumerate(TEXTS[:30]):
        (tmp_path / f"a{number:03d}.txt").write_text(t)
    for name in ("b.json", "c.JSONL"):
        (tmp_path / name).write_text("\n".join(json.dumps({"text": t}) for t in TEXTS[30:]))
    bundle = build(tmp_path, paths=[str(tmp_path / "*.*")])
    assert bundle.tokenizer is not None
    dataset = bundle.train.splits[0].dataset
    assert dataset.documents == 90
    assert "{" not in bundle.tokenizer.decode(dataset.read(0, dataset.tokens).tolist())


def test_the_loss_across_documents_needs_a_tokenizer_to_be_left_out(tmp_path: Path, text: Path) -> None:
    prefix = build(tmp_path, paths=[str(text)]).train.splits[0].dataset.prefix
    with pytest.raises(ConfigError, match=r"data\.eod_loss=false needs a tokenizer"):
        build(tmp_path, vocab=512, paths=[prefix], tokenizer="none", eod_loss=False)


def test_one_document_cannot_be_split_and_the_way_out_works(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("wind and sail " * 200)
    with pytest.raises(DataError, match=r"0 documents of 1.* write data\.split=\[1,0,0\]"):
        build(tmp_path, paths=[str(tmp_path / "book.txt")])
    assert build(tmp_path, paths=[str(tmp_path / "book.txt")], split=[1, 0, 0]).valid is None


def test_empty_documents_are_counted_in_the_sidecar(tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, 300).save(tmp_path / "t.json")
    index_documents(["", "one two", ""], tmp_path / "t.json", tmp_path / "c", append_eod=True, workers=1)
    meta = read_meta(tmp_path / "c")
    assert meta is not None
    assert (meta.documents, meta.empty_documents) == (1, 2)
    assert open_index(tmp_path / "c", None).documents == 1
    (tmp_path / "c.meta.json").write_text("{")
    with pytest.raises(DataError, match="garbled"):
        open_index(tmp_path / "c", None)


def test_the_builtin_corpus_is_the_standard_library() -> None:
    files = builtin_files()
    assert 300 < len(files) < 2000
    assert not any("site-packages" in path.parts for path in files)
    texts = documents(files[:5], "builtin", "text", Skipped())
    assert sum(1 for _ in texts) > 50, "the reference topics belong to it"


def test_tokenizer_round_trip_and_loading(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, 300)
    tokenizer.save(tmp_path / "t.json")
    loaded = Tokenizer.load(tmp_path / "t.json")
    assert loaded.sha256 == tokenizer.sha256 == Tokenizer.train(TEXTS, 300).sha256
    for text in ("wind and sail", "ünïcode \t\n 漢字", ""):
        assert loaded.decode(loaded.encode(text)) == text
    assert max(loaded.encode("wind")) < loaded.vocab_size
    bare = json.loads((tmp_path / "t.json").read_text())
    bare["added_tokens"] = []
    bare["model"]["vocab"].pop("<|endoftext|>")
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    with pytest.raises(DataError, match="end-of-document"):
        Tokenizer.load(tmp_path / "bare.json")


def test_one_rank_prepares_and_the_others_wait(tmp_path: Path, text: Path) -> None:
    order: list[str] = []

    def barrier() -> None:
        order.append("barrier")
        assert list((tmp_path / "cache").glob("*.idx")), "nothing may be opened before it is prepared"

    config = DataConfig(
        paths=[str(text)],
        cache_dir=str(tmp_path / "cache"),
        tokenizer_vocab=300,
        seq_len=16,
        workers=1,
        split=[1, 0, 0],
    )
    build_data(config, ObjectiveConfig(), 1, None, 64, is_writer=True, barrier=barrier, notice=order.append)
    other = build_data(config, ObjectiveConfig(), 1, None, 64, is_writer=False, barrier=barrier)
    assert order[-1] == "barrier"
    assert other.valid is None
    assert isinstance(other.train.splits[0].dataset, IndexedDataset)


def test_runs_that_begin_together_prepare_once(tmp_path: Path, text: Path) -> None:
    """As the jobs of a sweep do."""
    notes: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        bundles = list(pool.map(lambda _: build(tmp_path, notes, paths=[str(text)]), range(3)))
    assert len({bundle.summary for bundle in bundles}) == 1
    assert len([note for note in notes if note.startswith("indexing")]) == 1
    assert len([note for note in notes if note.startswith("training a byte-level BPE")]) == 1
