"""From opening an indexed corpus to the first batch: does a second start depend on the size of the corpus?

The index is real, every entry of it; the tokens are a sparse file of zeros. Starts are timed with the files in the
page cache, where nothing but work counts, and after they have left it, where each look-up is a read of the disk.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.config import DataConfig, ObjectiveConfig, TrainConfig
from engine.data.build import build_data
from engine.data.indexed import HEADER, MAGIC, bin_path, idx_path
from engine.data.loader import Loader
from engine.optim.schedules import plan
from tests.bench.pairs import Pairs, Plan
from tests.bench.sizes import Sizes

DOCUMENT_TOKENS, TOKEN_BYTES, UINT16 = 50, 2, 8
CHUNK = 1 << 20
FEW = 1000
CONSUMED = 100_000  # samples of the first run: a second start begins in the middle


def start(documents: int, sizes: Sizes, timing: Plan) -> dict[str, Pairs]:
    """Time starts on corpora of `documents` and of `FEW` documents alternately: from the page cache, from the disk."""
    runs = timing.warmup + timing.pairs
    with tempfile.TemporaryDirectory() as folder:
        many, few = (write_corpus(Path(folder) / f"{count}", count) for count in (documents, FEW))
        samples = {
            state: [(start_s(many, sizes, cold=cold), start_s(few, sizes, cold=cold)) for _ in range(runs)]
            for state, cold in (("cold disk", True), ("page cache", False))
        }
    return {state: Pairs.of(measured[timing.warmup :]) for state, measured in samples.items()}


def start_s(prefix: Path, sizes: Sizes, *, cold: bool) -> float:
    """Return the seconds from opening the corpus, as the trainer does, to the first global batch."""
    config = DataConfig(paths=[str(prefix)], format="megatron", tokenizer="none", seq_len=sizes.seq)
    train = TrainConfig(global_batch=sizes.samples, micro_batch=sizes.samples)
    if cold:
        forget(prefix)
    begin = time.perf_counter()
    data = build_data(config, ObjectiveConfig(), train.seed, sizes.vocab, 1, is_writer=True, barrier=lambda: None)
    plans = plan(CONSUMED, train.steps, train)
    loader = Loader(
        data.train, data.collate, plans, micro_batch=sizes.samples, dp_rank=0, dp=1, prefetch=config.prefetch
    )
    try:
        loader.next()
        return time.perf_counter() - begin
    finally:
        loader.close()


def write_corpus(prefix: Path, documents: int) -> Path:
    """Write an .idx of equally long documents (20 bytes each) and a sparse .bin to go with it; return the prefix."""
    arrays = (("<i4", 0, DOCUMENT_TOKENS), ("<i8", DOCUMENT_TOKENS * TOKEN_BYTES, 0), ("<i8", 1, 0))
    with idx_path(prefix).open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, UINT16, documents, documents + 1))
        for number, (dtype, slope, constant) in enumerate(arrays):
            for low, high in spans(documents + (number == 2)):
                file.write((np.arange(low, high) * slope + constant).astype(dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())
    with bin_path(prefix).open("wb") as file:
        file.truncate(documents * DOCUMENT_TOKENS * TOKEN_BYTES)
    return prefix


def spans(count: int) -> Iterator[tuple[int, int]]:
    """Cut 0..count into chunks that fit in memory."""
    return itertools.pairwise([*range(0, count, CHUNK), count])


def forget(prefix: Path) -> None:
    """Drop a corpus from the page cache."""
    for path in (idx_path(prefix), bin_path(prefix)):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
