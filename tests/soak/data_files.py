"""Corpora, tokenizers and configurations that are not what they should be."""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

from engine.data.indexed import IndexedDataset
from engine.data.preprocess import index_documents, meta_path
from engine.data.samples import Samples
from engine.data.split import make_split
from engine.data.tokenizer import Tokenizer
from engine.data.verify import verify
from launch import preprocess
from tests.data.test_indexed import DOCUMENTS, write_by_hand
from tests.data.test_verify import TEXTS, VOCAB, flip
from tests.soak.refusal import refusal, refusal_if_any
from tests.system.runs import REPO, environment

SEED = 2026


def corpus_of_ours(folder: Path) -> Path:
    Tokenizer.train(TEXTS, VOCAB).save(folder / "t.json")
    index_documents(TEXTS * 5, folder / "t.json", folder / "c", append_eod=True, workers=1)
    return folder / "c"


def flips_in_a_corpus(folder: Path) -> str:
    prefix, chance, trials = corpus_of_ours(folder), random.Random(SEED), 256
    for trial in range(trials):
        path = Path(f"{prefix}.{'bin' if trial % 2 else 'idx'}")
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        message = refusal(verify, prefix)
        assert str(prefix) in message, message
        flip(path, bit)
    return f"{trials} of {trials} found by --verify, the pair named"


def reading_a_damaged_index(folder: Path) -> str:
    """Without the sums, and without --verify: whatever is met in the middle of a run."""
    prefix, chance, refused = corpus_of_ours(folder), random.Random(SEED), 0
    meta_path(prefix).unlink()
    path, trials = Path(f"{prefix}.idx"), 200
    for _ in range(trials):
        bits = [chance.randrange(8 * path.stat().st_size) for _ in range(3)]
        for bit in bits:
            flip(path, bit)
        refused += refusal_if_any(read_samples, prefix) is not None
        for bit in bits:
            flip(path, bit)
    return f"{trials} indices with 3 flipped bits: {refused} refused, {trials - refused} read, no crash"


def read_samples(prefix: Path) -> None:
    split = make_split(IndexedDataset(prefix), "train", [80, 20, 0], 16)
    assert split is not None
    samples = Samples([split], [1.0], 1, VOCAB)
    assert all(samples[index].window.shape == (17,) for index in range(0, split.samples, 3))


def cut_pairs(folder: Path) -> str:
    write_by_hand(folder / "c", DOCUMENTS, 8, "<u2")
    done = 0
    for ending in ("idx", "bin"):
        path = folder / f"c.{ending}"
        content = path.read_bytes()
        for size in range(len(content)):
            path.write_bytes(content[:size])
            assert str(path.with_suffix("")) in refusal(IndexedDataset, folder / "c")
            done += 1
        path.write_bytes(content)
    return f"{done} of {done} lengths refused when opened, the file named"


def garbled_tokenizers(folder: Path) -> str:
    path, chance, refused, trials = folder / "t.json", random.Random(SEED), 0, 400
    Tokenizer.train(TEXTS, VOCAB).save(path)
    good = path.read_bytes()
    for trial in range(trials):
        path.write_bytes(good)
        if trial % 4 == 0:
            path.write_bytes(good[: chance.randrange(len(good))])
        else:
            flip(path, chance.randrange(8 * len(good)))
        refused += refusal_if_any(use_tokenizer, path) is not None
    return f"{trials} garbled: {refused} refused in one line, {trials - refused} still whole, no crash"


def use_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    tokenizer.decode(tokenizer.encode("wind and \0 sail \u6f22"))


def hostile_text(folder: Path) -> str:
    lines = [
        b'{"text":"half \\ud800"}', b"[" * 200_000, b"9" * 6000, b"\0" * 1000, b'{"text":"\xff"}', b'{"text":NaN}',
        b'{"text":""}', b'{"text":"NUL \\u0000"}', json.dumps({"text": "a line of 8 MB " * 550_000}).encode(),
        *(json.dumps({"text": text}).encode() for text in TEXTS),
    ]  # fmt: skip
    (folder / "x.jsonl").write_bytes(b"\n".join(lines))
    Tokenizer.train(TEXTS, VOCAB).save(folder / "t.json")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command = [str(folder / "x.jsonl"), "--output", str(folder / "c"), "--tokenizer", str(folder / "t.json")]
        assert preprocess.main([*command, "--workers", "2"]) == 0
    assert f"{len(TEXTS) + 2} documents" in said.getvalue()
    assert "left out: 3 lines of bad JSON, 2 texts with bad UTF-8, 1 lines without the text field" in said.getvalue()
    return said.getvalue().strip().partition(": ")[2].partition("; tokenizer")[0]


MISTAKES = {
    "optim.lrr=1": "Did you mean 'optim.lr'",
    "model.lr=1": "Did you mean 'optim.lr'",
    "modle=llama-tiny": "Did you mean 'model'",
    "model=lama-tiny": "Did you mean 'llama-tiny'",
    "optim.lr=abc": "optim.lr=abc",
    "train.steps=1.5": "train.steps=1.5",
    "data.paths=x": "data.paths=[x]",
    "optim.lr=-1": "optim.lr=-1",
    "optim.lr=nan": "optim.lr=nan",
    "parallel.tp=3": "parallel.tp=2 or parallel.tp=4",
    "parallel.pp=9": "parallel.pp",
    "parallel.dp=3": "train.global_batch=",
    "model.kv_heads=3": "model.kv_heads=",
    "model.positions=learned data.seq_len=4096": "model.max_positions=4096",
    "parallel.schedule=1f2b": "Did you mean '1f1b'",
    "train.global_batch=7": "train.global_batch=",
    "run.name=../x": "run.name",
    "model.hidden=1000000000000": "model.hidden",
    "checkpoint.accept_changes=[train.sed]": "Did you mean 'train.seed'",
}


def mistakes(folder: Path) -> str:
    """Each is answered by the launcher itself, before a rank is started; seconds are of the processor."""
    slowest: dict[bool, float] = {True: 0.0, False: 0.0}
    for words, wanted in MISTAKES.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "launch/pretrain.py", f"run.root={folder}", *words.split()], cwd=REPO, text=True,
            env=environment(), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = min(time.monotonic() - begin, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
        assert wanted in done.stderr, (words, done.stderr)
        of_one_key = any(sign in done.stderr for sign in ("unknown key", "converted", "has no option", "is not a list"))
        slowest[of_one_key] = max(slowest[of_one_key], seconds)
    assert not list(folder.iterdir())
    return (
        f"{len(MISTAKES)} of {len(MISTAKES)} answered in one line that names the key; keys and types within "
        f"{slowest[True]:.1f} s, rules between keys within {slowest[False]:.1f} s"
    )


CASES = [
    ("F15", "bit flips in .bin and .idx", flips_in_a_corpus),
    ("F15", "reading on with a damaged .idx", reading_a_damaged_index),
    ("F15", ".bin or .idx cut at every byte", cut_pairs),
    ("F17", "tokenizers garbled", garbled_tokenizers),
    ("F17", "hostile lines of text", hostile_text),
    ("F18", "mistakes in the configuration", mistakes),
]
