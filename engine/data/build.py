"""From `conf/data/` to samples: find or make the tokenizer and the indexed corpora, split and blend them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import DataConfig, ObjectiveConfig
from engine.data.corpus import Skipped, builtin_files, documents, find_files
from engine.data.indexed import IndexedDataset, bin_path, idx_path
from engine.data.loader import Collator
from engine.data.preprocess import index_documents, meta_path, open_index
from engine.data.samples import Samples
from engine.data.split import make_split
from engine.data.tokenizer import Tokenizer
from engine.data.verify import fingerprint
from engine.errors import ConfigError, DataError, did_you_mean, explained
from engine.objectives.choose import make_objective, special_tokens
from engine.objectives.example import Objective

FORMATS = ("auto", "builtin", "text", "jsonl", "megatron")


@dataclass(frozen=True)
class DataBundle:
    """Everything a run needs of its data.

    `vocab` is the model's vocabulary size; `valid` None without such a part; `contents` says which corpora these are
    and in what proportions (JSON values), wherever their files lie.
    """

    train: Samples
    valid: Samples | None
    collate: Collator
    vocab: int
    tokenizer: Tokenizer | None
    tokenizer_file: Path | None
    summary: str
    contents: list[list[Any]]


@dataclass(frozen=True)
class Source:
    """One entry of the blend: an index prefix, or text files that become one."""

    weight: float
    path: str | None  # None: the built-in corpus
    kind: str  # builtin | text | jsonl | auto (text or jsonl by each file's ending) | megatron


def build_data(
    config: DataConfig,
    objective: ObjectiveConfig,
    seed: int,
    vocab: int | None,
    vocab_multiple: int,
    *,
    is_writer: bool,
    barrier: Callable[[], None],
    notice: Callable[[str], None] = lambda text: None,
) -> DataBundle:
    """Prepare and open the data. The writing rank prepares; `barrier` makes the others wait for it.

    A second call with the same sources finds everything in `cache_dir` and does no work that grows with the corpus.
    """
    sources = read_sources(config)
    preparation = Preparation(config, sources, special_tokens(objective, config), notice)
    if objective.name != "causal" and config.tokenizer not in ("train", "none"):
        make_objective(objective, config, seed, Tokenizer.load(config.tokenizer))  # before hours of indexing, not after
    if is_writer:
        preparation.run()
    barrier()
    tokenizer = Tokenizer.load(preparation.tokenizer_file) if preparation.tokenizer_file else None
    datasets = [open_index(prefix, tokenizer) for prefix in preparation.prefixes()]
    if tokenizer is None and not config.eod_loss:
        raise ConfigError(
            "data.eod_loss=false needs a tokenizer, to know which token ends a document; write data.tokenizer="
            "PATH/tokenizer.json, or data.eod_loss=true."
        )
    size = vocab or _rounded_vocab(tokenizer, vocab_multiple)
    if tokenizer is not None and size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size={size} is smaller than the tokenizer's {tokenizer.vocab_size} entries; "
            "raise it, or write null to follow the tokenizer."
        )
    goal = make_objective(objective, config, seed, tokenizer)
    weights = [source.weight for source in sources]
    train = _samples(datasets, weights, "train", config, goal, seed, size, shuffle=True)
    assert train is not None
    valid = _samples(datasets, weights, "valid", config, goal, seed, size, shuffle=False)
    total = sum(dataset.tokens for dataset in datasets)
    count = sum(dataset.documents for dataset in datasets)
    summary = f"{count:,} documents, {total:,} tokens, {train.per_epoch:,} samples an epoch, vocabulary {size:,}"
    contents = [[share, fingerprint(d)] for share, d in zip(train.blend.counts, datasets, strict=True)]
    return DataBundle(train, valid, Collator(goal), size, tokenizer, preparation.tokenizer_file, summary, contents)


def _rounded_vocab(tokenizer: Tokenizer | None, multiple: int) -> int:
    if tokenizer is None:
        raise ConfigError(
            "data.tokenizer=none leaves the vocabulary unknown: set model.vocab_size, or a tokenizer.json."
        )
    return -(-tokenizer.vocab_size // multiple) * multiple


def _samples(
    datasets: list[IndexedDataset],
    weights: list[float],
    name: str,
    config: DataConfig,
    goal: Objective,
    seed: int,
    vocab: int,
    *,
    shuffle: bool,
) -> Samples | None:
    splits = [make_split(dataset, name, config.split, goal.stride) for dataset in datasets]
    present = [split for split in splits if split is not None]
    return Samples(present, weights, seed, vocab, shuffle=shuffle) if present else None


def read_sources(config: DataConfig) -> list[Source]:
    """Return the entries of data.paths, each with its weight and kind."""
    if config.format not in FORMATS:
        raise ConfigError(f"data.format={config.format} is unknown.{did_you_mean(config.format, FORMATS)}")
    if not config.paths:
        if config.format not in ("auto", "builtin"):
            raise ConfigError(f"data.format={config.format} needs files: set data.paths=[FILE, ...].")
        return [Source(1.0, None, "builtin")]
    return [read_source(entry, config.format) for entry in config.paths]


def read_source(entry: Any, form: str, key: str = "data.paths") -> Source:
    """Return one entry of the list that the configuration has under `key`, a path or [weight, path]."""
    weight, path = (1.0, entry) if isinstance(entry, str) else (entry[0], entry[1]) if len(entry) == 2 else (None, None)
    if not isinstance(path, str) or not isinstance(weight, (int, float)):
        raise ConfigError(f"{key}: {entry!r} is neither a path nor a pair [weight, path].")
    if not 0 < weight < math.inf:  # before hours of indexing, not after
        raise ConfigError(f"{key}: the weight of {path} is {weight:g}; write a number above 0, or leave it out.")
    if form != "auto":
        return Source(float(weight), _prefix(path) if form == "megatron" else path, form)
    if path.endswith((".bin", ".idx")) or idx_path(path).exists() or bin_path(path).exists():
        return Source(float(weight), _prefix(path), "megatron")
    return Source(float(weight), path, "jsonl" if path.endswith((".jsonl", ".ndjson")) else "auto")


def _prefix(path: str) -> str:
    return path[:-4] if path.endswith((".bin", ".idx")) else path


class Preparation:
    """What must exist before the corpora can be opened, and where it lies in the cache."""

    def __init__(
        self,
        config: DataConfig,
        sources: list[Source],
        special: list[str],
        notice: Callable[[str], None],
        key: str = "data.paths",
    ) -> None:
        """`key` is where the configuration names the sources. DataError where there is no such file."""
        self.config, self.sources, self.special = config, sources, special
        self.notice, self._key = notice, key
        self.cache = Path(config.cache_dir)
        self._files = {source: self._find(source) for source in sources if source.kind != "megatron"}
        self.tokenizer_file = self._tokenizer_file()

    def _find(self, source: Source) -> list[Path]:
        return builtin_files() if source.path is None else find_files([source.path], self._key)

    def _tokenizer_file(self) -> Path | None:
        choice = self.config.tokenizer
        if choice == "none":
            if self._files:
                raise ConfigError("data.tokenizer=none works only with indexed corpora; text needs a tokenizer.json.")
            return None
        if choice != "train":
            return Path(choice)
        if not self._files:
            raise DataError(
                "data.tokenizer=train needs text, but data.paths names indexed corpora only; write data.tokenizer="
                "PATH/tokenizer.json, or data.tokenizer=none with model.vocab_size."
            )
        reserved = [self.special] if self.special else []
        key = _digest("tokenizer", self.config.tokenizer_vocab, *map(self._fingerprint, self._files), *reserved)
        return self.cache / f"tokenizer-{key}.json"

    def prefixes(self) -> list[str]:
        """Return the index prefix of every source, made or given."""
        return [
            source.path or "" if source.kind == "megatron" else str(self._cached(source)) for source in self.sources
        ]

    def _cached(self, source: Source) -> Path:
        key = _digest("index", self._tokenizer_sha256, self.config.append_eod, self._fingerprint(source))
        return self.cache / f"{'text' if source.kind == 'auto' else source.kind}-{key}"

    @functools.cached_property
    def _tokenizer_sha256(self) -> str:
        """Name the tokenizer by its content: a run keeps a copy of it."""
        assert self.tokenizer_file is not None
        return Tokenizer.load(self.tokenizer_file).sha256

    def _fingerprint(self, source: Source) -> str:
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self._files[source]]
        return _digest(source.kind, self.config.jsonl_key, *stats)

    def run(self) -> None:
        """Train the tokenizer and index what is not in the cache yet."""
        with explained(f"{self.cache} cannot be written", "make room there, or write another data.cache_dir"):
            if not self._is_complete():
                with self._alone():
                    self._prepare()

    def _is_complete(self) -> bool:
        if self.tokenizer_file is not None and self.config.tokenizer == "train" and not self.tokenizer_file.exists():
            return False
        return all(meta_path(self._cached(source)).exists() for source in self._files)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one run at a time prepare: those of a sweep begin together, and want the same."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with open(self.cache / ".lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.notice(f"waiting for another run, which prepares data in {self.cache}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        if self.tokenizer_file is not None and self.config.tokenizer == "train" and not self.tokenizer_file.exists():
            self.notice(f"training a byte-level BPE of {self.config.tokenizer_vocab} tokens")
            texts = (text for source in self._files for text in self._texts(source, Skipped()))
            Tokenizer.train(texts, self.config.tokenizer_vocab, self.special).save(self.tokenizer_file)
        for source in self._files:
            prefix = self._cached(source)
            if not meta_path(prefix).exists():  # written last: the pair before it is whole
                self._index(source, prefix)

    def _texts(self, source: Source, skipped: Skipped) -> Any:
        return documents(self._files[source], source.kind, self.config.jsonl_key, skipped)

    def _index(self, source: Source, prefix: Path) -> None:
        assert self.tokenizer_file is not None
        skipped = Skipped()
        self.notice(f"indexing {source.path or 'the built-in corpus'} into {prefix}")
        meta = index_documents(
            self._texts(source, skipped), self.tokenizer_file, prefix,
            append_eod=self.config.append_eod, workers=self.config.workers, show=True, source=source.path,
            skipped=skipped,
        )  # fmt: skip
        left_out = f"; left out: {skipped.describe()}" if skipped.describe() else ""
        empty = f", {meta.empty_documents} empty ones left out" if meta.empty_documents else ""
        self.notice(f"indexed {meta.documents:,} documents, {meta.tokens:,} tokens{empty}{left_out}")


def _digest(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=8).hexdigest()
