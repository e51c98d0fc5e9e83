"""Which samples a global batch holds depends on nothing but what was consumed before it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.batch import MicroBatch
from engine.data.indexed import IndexedDataset, IndexedWriter
from engine.data.loader import Collator, Loader, replica_batch, validation_batches
from engine.data.samples import Samples
from engine.data.split import make_split, split_documents
from engine.errors import DataError
from engine.objectives.causal import Causal

SEQ = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> IndexedDataset:
    """40 documents of 5 to 24 tokens; token n of the whole corpus is n."""
    prefix = tmp_path_factory.mktemp("corpus") / "c"
    rng = np.random.default_rng(0)
    start = 0
    with IndexedWriter(prefix, np.uint16) as writer:
        for size in rng.integers(5, 25, 40):
            writer.add(np.arange(start, start + size))
            start += size
    return IndexedDataset(prefix)


def make_samples(corpus: IndexedDataset, vocab: int = 10**4) -> Samples:
    split = make_split(corpus, "train", [90, 10, 0], SEQ)
    assert split is not None
    return Samples([split], [1.0], 5, vocab)


def collator(**kwargs: bool) -> Collator:
    return Collator(Causal(SEQ, document_mask=kwargs.get("mask", False), position_reset=kwargs.get("reset", False)))


def rows(micros: list[MicroBatch]) -> dict[int, list[int]]:
    return {
        int(slot): [*micro.tokens_bs[i].tolist(), int(micro.labels_bs[i, -1])]
        for micro in micros
        for i, slot in enumerate(micro.slots_b)
    }


@given(dp=st.sampled_from([1, 2, 4]), micro=st.sampled_from([1, 2, 4]), consumed=st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_global_batch_is_independent_of_dp_and_micro_batches(
    corpus: IndexedDataset, dp: int, micro: int, consumed: int
) -> None:
    samples = make_samples(corpus)
    parts = [
        rows(replica_batch(samples, collator(), consumed, 16, micro_batch=micro, dp_rank=r, dp=dp)) for r in range(dp)
    ]
    together = {slot: row for part in parts for slot, row in part.items()}
    assert sum(map(len, parts)) == len(together) == 16
    assert together == {slot: samples[consumed + slot].window.tolist() for slot in range(16)}


def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order(corpus: IndexedDataset) -> None:
    samples = make_samples(corpus)
    n = samples.per_epoch
    epochs = [[int(samples[k].window[0]) for k in range(e * n, (e + 1) * n)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [k * SEQ for k in range(n)]
    assert epochs[0] != epochs[1]


def test_samples_tile_the_split_and_labels_are_the_next_tokens(corpus: IndexedDataset) -> None:
    samples = make_samples(corpus)
    micro = collator()([samples[0], samples[1]], [0, 1])
    assert torch.equal(micro.labels_bs, micro.tokens_bs + 1), "token n of this corpus is n"
    assert micro.loss_mask_bs is None


def test_prefetched_batches_equal_those_made_in_the_foreground(corpus: IndexedDataset) -> None:
    plans = [(0, 4), (4, 8), (12, 8)]
    made = []
    for prefetch in (0, 1, 3):
        loader = Loader(make_samples(corpus), collator(), plans, micro_batch=2, dp_rank=0, dp=1, prefetch=prefetch)
        made.append([rows(loader.next()) for _ in plans])
        loader.close()
    assert made[0] == made[1] == made[2]


def test_an_error_of_the_worker_is_raised_in_the_training_thread(corpus: IndexedDataset) -> None:
    loader = Loader(make_samples(corpus, vocab=50), collator(), [(0, 64)], micro_batch=2, dp_rank=0, dp=1, prefetch=2)
    with pytest.raises(DataError, match=r"document \d+: token id \d+ is outside the vocabulary of 50"):
        loader.next()
    loader.close()


def test_a_loader_can_be_closed_while_it_works(corpus: IndexedDataset) -> None:
    endless = ((k * 4, 4) for k in range(10**9))
    loader = Loader(make_samples(corpus), collator(), endless, micro_batch=2, dp_rank=0, dp=1, prefetch=2)
    loader.next()
    loader.close()


def test_documents_and_positions_follow_the_boundaries(corpus: IndexedDataset) -> None:
    samples = make_samples(corpus)
    micro = collator(mask=True, reset=True)([samples[k] for k in range(20)], list(range(20)))
    assert micro.documents_bs is not None
    assert micro.positions_bs is not None
    begins = {corpus.document_start(d) for d in range(corpus.documents)}
    for row in range(20):
        document, position = 0, 0
        for i, token in enumerate(micro.tokens_bs[row].tolist()):
            if i > 0 and token in begins:
                document, position = document + 1, 0
            assert (int(micro.documents_bs[row, i]), int(micro.positions_bs[row, i])) == (document, position)
            position += 1
    assert micro.documents_bs.max() >= 1


@pytest.mark.parametrize(("dp", "micro"), [(1, 1), (2, 2), (4, 1), (1, 8)])
def test_validation_counts_the_same_tokens_on_every_layout(corpus: IndexedDataset, dp: int, micro: int) -> None:
    samples = make_samples(corpus)
    counted = {}
    for rank in range(dp):
        for batch in validation_batches(samples, collator(), 5, micro_batch=micro, dp_rank=rank, dp=dp):
            mask = batch.loss_mask_bs
            for i, slot in enumerate(batch.slots_b.tolist()):
                if mask is None or mask[i].any():
                    counted[slot] = batch.tokens_bs[i].tolist()
    assert sorted(counted) == [0, 1, 2, 3, 4]
    assert counted == {k: samples[k].window[:-1].tolist() for k in range(5)}


@given(documents=st.integers(1, 5000), parts=st.tuples(st.integers(1, 999), st.integers(0, 99), st.integers(0, 99)))
@settings(max_examples=60, deadline=None)
def test_splits_cover_all_documents_once(documents: int, parts: tuple[int, int, int]) -> None:
    ranges = split_documents(documents, parts)
    assert ranges[0][0] == 0
    assert ranges[2][1] == documents
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    for (start, stop), part in zip(ranges, parts, strict=True):
        assert abs((stop - start) - documents * part / sum(parts)) <= 2


def test_a_part_without_a_whole_sample_says_what_to_change(corpus: IndexedDataset) -> None:
    with pytest.raises(DataError, match=r"the valid part of .* tokens in 1 documents of 40, less than one sample"):
        make_split(corpus, "valid", [999, 1, 0], 500)
    assert make_split(corpus, "test", [90, 10, 0], SEQ) is None
