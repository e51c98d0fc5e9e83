"""Megatron's byte layout, read and written by hand in this file, against our reader and writer."""

from __future__ import annotations

import itertools
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.indexed import IndexedDataset, IndexedWriter, token_dtype
from engine.errors import DataError

DOCUMENTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4], [65499, 0]]


def write_by_hand(
    prefix: Path, documents: list[list[int]], code: int, kind: str, sequences_per_document: int = 1
) -> None:
    """Write the published layout without our code: documents may be cut into several sequences."""
    lengths, pointers, ends, data = [], [], [0], b""
    for document in documents:
        size = -(-len(document) // sequences_per_document)
        for start in range(0, len(document), size):
            part = np.array(document[start : start + size], dtype=kind)
            lengths.append(len(part))
            pointers.append(len(data))
            data += part.tobytes()
        ends.append(len(lengths))
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code)
    index += struct.pack("<Q", len(lengths)) + struct.pack("<Q", len(ends))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(ends)}q", *ends)
    Path(f"{prefix}.bin").write_bytes(data)
    Path(f"{prefix}.idx").write_bytes(index)


def read_by_hand(prefix: Path) -> tuple[int, list[list[int]]]:
    """Read the published layout without our code; return the dtype code and the documents."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<Q", index, 9) == (1,)
    (code,) = struct.unpack_from("<B", index, 17)
    (sequences,) = struct.unpack_from("<Q", index, 18)
    (count,) = struct.unpack_from("<Q", index, 26)
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    ends = struct.unpack_from(f"<{count}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * count
    kind = {4: "<i4", 8: "<u2"}[code]
    parts = [np.frombuffer(data, kind, n, p).tolist() for n, p in zip(lengths, pointers, strict=True)]
    return code, [[token for part in parts[a:b] for token in part] for a, b in itertools.pairwise(ends)]


def documents_of(dataset: IndexedDataset) -> list[list[int]]:
    edges = [dataset.document_start(i) for i in range(dataset.documents + 1)]
    return [dataset.read(a, b).tolist() for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(("vocab", "code"), [(65499, 8), (65500, 4)])
def test_ours_is_read_by_the_published_layout(tmp_path: Path, vocab: int, code: int) -> None:
    with IndexedWriter(tmp_path / "c", token_dtype(vocab)) as writer:
        writer.add_all([[], *DOCUMENTS, []])
    assert writer.empty == 2
    assert read_by_hand(tmp_path / "c") == (code, DOCUMENTS)
    assert {path.name for path in tmp_path.iterdir()} == {"c.bin", "c.idx"}


@pytest.mark.parametrize(("code", "kind"), [(8, "<u2"), (4, "<i4"), (5, "<i8")])
@pytest.mark.parametrize("sequences", [1, 2])
def test_the_published_layout_is_read_by_ours(tmp_path: Path, code: int, kind: str, sequences: int) -> None:
    write_by_hand(tmp_path / "c", DOCUMENTS, code, kind, sequences)
    dataset = IndexedDataset(tmp_path / "c")
    assert documents_of(dataset) == DOCUMENTS
    assert dataset.tokens == 12
    assert [dataset.document_of(token) for token in range(12)] == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    assert dataset.starts_within(1, 11).tolist() == [3, 4, 10]
    assert dataset.starts_within(4, 10).tolist() == []


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), data=st.data())
@settings(max_examples=30, deadline=None)
def test_starts_within_finds_every_document(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    prefix = tmp_path_factory.mktemp("d") / "c"
    write_by_hand(prefix, [[1] * size for size in sizes], 8, "<u2")
    begins = np.cumsum([0, *sizes])[:-1]
    total = sum(sizes)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    expected = [int(b) for b in begins if start < b < stop]
    assert IndexedDataset(prefix).starts_within(start, stop).tolist() == expected


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "c", np.uint16)
    writer.add([1, 2])
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda idx, bin: idx.unlink(), "c.idx is missing"),
        (lambda idx, bin: bin.unlink(), "c.bin is missing"),
        (lambda idx, bin: idx.write_bytes(idx.read_bytes()[:20]), "less than a header"),
        (lambda idx, bin: idx.write_bytes(idx.read_bytes()[:-4]), "make 122"),
        (lambda idx, bin: idx.write_bytes(b"X" + idx.read_bytes()[1:]), "not an index"),
        (lambda idx, bin: idx.write_bytes(idx.read_bytes()[:9] + b"\x02" + idx.read_bytes()[10:]), "version 2"),
        (lambda idx, bin: idx.write_bytes(idx.read_bytes()[:17] + b"\x07" + idx.read_bytes()[18:]), "dtype code 7"),
        (lambda idx, bin: bin.write_bytes(bin.read_bytes()[:-2]), "22 bytes, but its index ends at 24"),
        (lambda idx, bin: bin.write_bytes(bin.read_bytes() + b"xx"), "26 bytes, but its index ends at 24"),
    ],
)
def test_damage_is_found_when_opening_and_named(tmp_path: Path, damage: object, message: str) -> None:
    write_by_hand(tmp_path / "c", DOCUMENTS, 8, "<u2")
    damage(tmp_path / "c.idx", tmp_path / "c.bin")  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as caught:
        IndexedDataset(tmp_path / "c")
    assert "\n" not in str(caught.value)


def make_sparse(prefix: Path, documents: int, length: int) -> None:
    """An index of many equal documents whose arrays are holes, but for the ends that opening looks at.

    A hole reads as zero, so lengths and pointers in the middle are not true: whoever walks through them fails.
    """
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(documents * length * 2)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, documents, documents + 1))
        file.truncate(34 + 12 * documents + 8 * (documents + 1))
        file.seek(34 + 4 * (documents - 1))
        file.write(struct.pack("<i", length))
        file.seek(34 + 4 * documents + 8 * (documents - 1))
        file.write(struct.pack("<q", (documents - 1) * length * 2))
        file.seek(34 + 12 * documents + 8 * documents)
        file.write(struct.pack("<q", documents))


def test_opening_a_hundred_million_documents_touches_a_handful_of_pages(tmp_path: Path) -> None:
    make_sparse(tmp_path / "big", 10**8, 50)
    before = resource.getrusage(resource.RUSAGE_SELF)
    dataset = IndexedDataset(tmp_path / "big")
    assert dataset.documents == 10**8
    assert dataset.tokens == 5 * 10**9
    assert dataset.read(4_999_999_000, 4_999_999_100).tolist() == [0] * 100
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    assert faults < 2000, "an index of 1.9 GB has 500,000 pages"


def test_looking_up_a_document_among_millions_copies_no_array(tmp_path: Path) -> None:
    """numpy's own search copies an unaligned array; a true index of 16 MB shows it in page faults."""
    documents = 10**6
    lengths = np.full(documents, 3, dtype="<i4")
    pointers = np.arange(documents, dtype="<i8") * 6
    with open(tmp_path / "c.idx", "wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, documents, documents + 1))
        for array in (lengths, pointers, np.arange(documents + 1, dtype="<i8")):
            file.write(array.tobytes())
    with open(tmp_path / "c.bin", "wb") as file:
        file.truncate(documents * 6)
    dataset = IndexedDataset(tmp_path / "c")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert dataset.document_of(1_500_001) == 500_000
    assert dataset.starts_within(30, 40).tolist() == [33, 36, 39]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000, "the index has 5,000 pages"
