"""Any cutting is read by any other; what is damaged is named and skipped."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.boxes import Box, flat_range_boxes
from engine.checkpoint.entry import Entry
from engine.checkpoint.manifest import DTYPES
from engine.checkpoint.reader import find_checkpoint, open_checkpoint
from engine.errors import CheckpointError
from tests.checkpoint.helpers import find, in_threads, make_writer, read_all, save, whole


@st.composite
def cuttings(draw: st.DrawFn) -> tuple[int, dict[str, torch.Tensor], list[list[Entry]], random.Random]:
    """Tensors, cut at random in flat ranges of a random grid, dealt to random ranks."""
    chance = draw(st.randoms(use_true_random=True))
    world, tensors = draw(st.integers(1, 4)), {}
    dealt: list[list[Entry]] = [[] for _ in range(world)]
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        values = torch.tensor([chance.randrange(2 if dtype == "bool" else 100) for _ in range(Box((), shape).numel)])
        tensor = tensors[f"t/{number}"] = values.to(DTYPES[dtype]).view(shape)
        box = Box((0,) * len(shape), shape)
        cuts = sorted({0, box.numel, *(chance.randint(0, box.numel) for _ in range(3))})
        for start, stop in itertools.pairwise(cuts):
            for part in flat_range_boxes(box, start, stop):
                held = tensor[part.box.slices_in(box)]
                chance.choice(dealt).append(Entry(f"t/{number}", shape, part.box.offsets, held))
        if box.numel == 0:
            dealt[0].append(Entry(f"t/{number}", shape, box.offsets, tensor))
    return world, tensors, dealt, chance


@settings(max_examples=60, deadline=None)
@given(cuttings())
def test_any_cutting_is_read_by_any_other(case: tuple) -> None:
    world, tensors, dealt, chance = case
    store = dist.HashStore()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def rank(number: int) -> None:
            writer = make_writer(folder, rank=number, world=world, store=store)
            writer.save(7, dealt[number], {"rank": number})
            writer.wait()
            writer.close()
            assert [r.error for r in writer.poll()] == [None]

        in_threads(world, rank)
        checkpoint = find(folder)
        assert checkpoint is not None
        assert (checkpoint.step, checkpoint.meta, checkpoint.warnings) == (7, {"rank": 0}, [])
        assert checkpoint.names() == sorted(tensors)
        for key, tensor in tensors.items():
            assert checkpoint.dtype(key) == tensor.dtype
            low = [chance.randint(0, n) for n in tensor.shape]
            size = [chance.randint(0, n - a) for a, n in zip(low, tensor.shape, strict=True)]
            out = torch.full([*size, 2], -1.0, dtype=torch.float64)[..., 0]  # strided, and of another dtype
            checkpoint.read(key, low, out)
            assert torch.equal(out, tensor[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))].double())
        got = read_all(checkpoint)
        assert all(torch.equal(got[key], tensor) for key, tensor in tensors.items())


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with steps 1 and 2."""
    for step in (1, 2):
        assert save(tmp_path, step, whole(a=torch.arange(200.0) + step, b=torch.tensor(step))).ok
    return tmp_path


def test_64_bit_flips_are_all_found_and_named(two: Path) -> None:
    chance = random.Random(5)
    newest = two / "step_00000002"
    for trial in range(64):
        path = newest / ("manifest.json" if trial % 4 == 0 else "shard-00000.safetensors")
        content = path.read_bytes()
        at = chance.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        found = find(two)
        assert found is not None
        assert found.step == 1
        assert len(found.warnings) == 1
        assert path.name in found.warnings[0]
        with pytest.raises(CheckpointError, match=path.name):
            open_checkpoint(newest)
        path.write_bytes(content)
    assert find(two).step == 2


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.safetensors"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "longer", "folder", "link"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(two: Path, name: str, fault: str) -> None:
    path = two / "step_00000002" / name
    content = path.read_bytes()
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault == "link":
        path.with_name("elsewhere").write_bytes(content)
        path.symlink_to("elsewhere")
    elif fault != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "longer": content + b"\0"}[fault])
    found = find(two)
    assert found is not None
    assert read_all(found)["b"].item() == 1
    (warning,) = found.warnings
    assert name in warning
    assert "step_00000002" in warning
    assert "\n" not in warning


def test_a_folder_under_a_false_name_is_skipped(two: Path) -> None:
    shutil.copytree(two / "step_00000001", two / "step_00000009")
    found = find(two)
    assert found.step == 2
    assert "that of step 1" in found.warnings[0]


def test_nothing_saved_is_none_and_all_damaged_is_an_error(two: Path) -> None:
    assert find(two / "nowhere") is None
    for path in two.glob("step_*/manifest.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"step_00000002: manifest.json is missing.*start afresh"):
        find(two)


def test_all_ranks_name_a_fault_that_one_of_them_sees(tmp_path: Path) -> None:
    store = dist.HashStore()

    def write(rank: int) -> None:
        for step in (1, 2):
            writer = make_writer(tmp_path, rank=rank, world=3, store=store)
            writer.save(step, [Entry("a", (3,), (rank,), torch.ones(1))], {})
            writer.wait()
            writer.close()

    in_threads(3, write)
    (tmp_path / "step_00000002" / "shard-00001.safetensors").write_bytes(b"")
    votes = {0: iter((True, False, True)), 1: iter((True, False, True)), 2: iter((True, False, True))}
    for rank in range(3):
        asked: list[bool] = []

        def agree(mine: bool, rank: int = rank, asked: list[bool] = asked) -> bool:
            asked.append(mine)
            return next(votes[rank])

        found = find_checkpoint(tmp_path, rank=rank, world=3, agree=agree)
        assert asked == [True, rank != 1, True]
        assert found.step == 1
        assert "shard-00001.safetensors is damaged: 0 bytes" in found.warnings[0]


def test_reading_what_is_not_there_asks_for_the_model(two: Path) -> None:
    checkpoint = open_checkpoint(two / "step_00000002")
    checkpoint.expect("a", (200,))
    for wrong in (
        lambda: checkpoint.expect("a", (201,)),
        lambda: checkpoint.expect("c", (200,)),
        lambda: checkpoint.read("a", (199,), torch.empty(2)),
        lambda: checkpoint.read("a", (-1,), torch.empty(2)),
        lambda: checkpoint.read("a", (0, 0), torch.empty(2, 1)),
        lambda: checkpoint.read("b", (0,), torch.empty(1)),
    ):
        with pytest.raises(CheckpointError, match="another model"):
            wrong()
