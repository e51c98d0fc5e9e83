"""The corpus that the bench opens, and its starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.data.indexed import IndexedDataset, bin_path
from tests.bench import second_start
from tests.bench.pairs import Plan
from tests.bench.second_start import DOCUMENT_TOKENS, start, write_corpus
from tests.bench.sizes import QUICK


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_the_corpus_is_a_whole_index_over_a_sparse_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(second_start, "CHUNK", chunk)
    dataset = IndexedDataset(write_corpus(tmp_path / "corpus", 1000))
    assert (dataset.documents, dataset.tokens) == (1000, 1000 * DOCUMENT_TOKENS)
    starts = [dataset.document_start(document) for document in range(1001)]
    assert starts == [DOCUMENT_TOKENS * document for document in range(1001)]
    assert bin_path(dataset.prefix).stat().st_blocks * 512 < dataset.tokens


def test_both_starts_reach_a_batch() -> None:
    for pairs in start(5000, QUICK, Plan(warmup=1, pairs=1, steps=1)).values():
        assert len(pairs.ratios) == 1
