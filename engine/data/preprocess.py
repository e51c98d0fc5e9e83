"""Text to an indexed corpus, in parallel; the result does not depend on the number of workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engine.data.corpus import Skipped
from engine.data.indexed import IndexedDataset, IndexedWriter, token_dtype
from engine.data.tokenizer import Tokenizer
from engine.errors import DataError

_CHUNK = 16  # documents a worker takes at a time
_worker_tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class IndexMeta:
    """The sidecar `prefix.meta.json` of an indexed corpus; it may come without the sums of the files beside it."""

    tokenizer_sha256: str
    vocab_size: int
    eod: int
    documents: int
    tokens: int
    empty_documents: int
    bin_sha256: str = ""
    idx_sha256: str = ""


def meta_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.meta.json")


def read_meta(prefix: str | Path) -> IndexMeta | None:
    """Return the sidecar of a corpus, None for one that another program wrote."""
    path = meta_path(prefix)
    if not path.exists():
        return None
    try:
        return IndexMeta(**json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{path} is garbled; delete it and the corpus beside it, and index again.") from None


def open_index(prefix: str | Path, tokenizer: Tokenizer | None) -> IndexedDataset:
    """Open a corpus; raise DataError when a sidecar says that another tokenizer made it."""
    dataset, meta = IndexedDataset(prefix), read_meta(prefix)
    if meta is not None and tokenizer is not None and meta.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"{prefix} was indexed with another tokenizer (vocabulary of {meta.vocab_size}, here "
            f"{tokenizer.vocab_size}); set data.tokenizer to that one, or index the text again."
        )
    if dataset.tokens == 0:
        raise DataError(f"{prefix}.bin holds no tokens: every document was empty.")
    return dataset


def index_documents(
    texts: Iterable[str],
    tokenizer_file: Path,
    prefix: Path,
    *,
    append_eod: bool,
    workers: int,
    total: int | None = None,
    show: bool = False,
    source: str | None = None,
    skipped: Skipped | None = None,
) -> IndexMeta:
    """Tokenise `texts` in order into `prefix`.bin/.idx with a sidecar; `show` draws a progress bar.

    Empty texts are left out and counted. Raises DataError when nothing is left: it names `source` and what was
    `skipped` while the texts were read.
    """
    tokenizer = Tokenizer.load(tokenizer_file)
    workers = workers or len(os.sched_getaffinity(0))
    with _progress(show) as progress, IndexedWriter(prefix, token_dtype(tokenizer.vocab_size)) as writer:
        task = progress.add_task("tokenising", total=total)
        tokens = 0
        count = 0
        for ids in _encoded(texts, tokenizer, tokenizer_file, workers):
            writer.add([*ids, tokenizer.eod] if ids and append_eod else ids)
            tokens += len(ids) + (1 if ids and append_eod else 0)
            count += bool(ids)
            progress.advance(task)
        if count == 0:
            raise DataError(f"there is no text in {source or prefix}: {_nothing(writer.empty, skipped or Skipped())}.")
    meta = IndexMeta(
        tokenizer.sha256, tokenizer.vocab_size, tokenizer.eod, count, tokens, writer.empty,
        bin_sha256=writer.sha256["bin"], idx_sha256=writer.sha256["idx"],
    )  # fmt: skip
    aside = meta_path(prefix).with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(meta), indent=1))
    os.replace(aside, meta_path(prefix))
    return meta


def _nothing(empty: int, skipped: Skipped) -> str:
    """Say why no document is left."""
    found = f"{empty} documents, all of them empty" if empty or not skipped.describe() else ""
    return "; ".join(part for part in (found, skipped.describe()) if part)


def _progress(show: bool) -> Progress:
    show = show and sys.stdout.isatty()  # a bar is for terminals; what else output leads to may be full or closed
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not show, transient=True)


def _encoded(texts: Iterable[str], tokenizer: Tokenizer, tokenizer_file: Path, workers: int) -> Iterator[list[int]]:
    """Yield the tokens of each text in order, from `workers` processes when there are several."""
    if workers == 1:
        yield from (tokenizer.encode(text) for text in texts)
        return
    context = multiprocessing.get_context("spawn")  # safe beside threads and CUDA
    with context.Pool(workers, _start_worker, (str(tokenizer_file),)) as pool:
        yield from pool.imap(_encode, texts, chunksize=_CHUNK)


def _start_worker(tokenizer_file: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = Tokenizer.load(tokenizer_file)


def _encode(text: str) -> list[int]:
    assert _worker_tokenizer is not None
    return _worker_tokenizer.encode(text)
