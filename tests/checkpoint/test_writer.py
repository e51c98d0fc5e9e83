"""Saves beside the training: not torn, kept by policy, and failing without touching what was there."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from engine.checkpoint.entry import Entry
from engine.checkpoint.folder import commit
from engine.checkpoint.manifest import Manifest
from engine.checkpoint.reader import find_checkpoint, open_checkpoint
from engine.checkpoint.shard import Snapshot
from engine.checkpoint.writer import SaveResult
from tests.checkpoint.helpers import find, in_threads, make_writer, names_in, read_all, save, whole
from tests.ranks import run_ranks


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds every write back until it is set."""
    event, write = threading.Event(), Snapshot.write

    def slow(self: Snapshot, path: Path) -> object:
        assert event.wait(20)
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", slow)
    return event


def test_values_may_change_as_soon_as_save_returns(tmp_path: Path, gate: threading.Event) -> None:
    writer, state, meta = make_writer(tmp_path), torch.arange(1000.0), {"list": [1]}
    writer.save(1, whole(state=state), meta)
    state.fill_(-1)
    meta["list"].append(2)
    assert writer.poll() == []  # nothing has been written yet
    assert find(tmp_path) is None
    gate.set()
    writer.wait()
    (result,) = writer.poll()
    assert result.ok
    assert result.stall_s < result.seconds
    assert result.bytes == (result.path / "shard-00000.safetensors").stat().st_size
    checkpoint = find(tmp_path)
    assert torch.equal(read_all(checkpoint)["state"], torch.arange(1000.0))
    assert checkpoint.meta == {"list": [1]}
    writer.close()


def test_a_save_waits_for_the_one_before_and_uses_its_memory(tmp_path: Path, gate: threading.Event) -> None:
    writer = make_writer(tmp_path)
    writer.save(1, whole(state=torch.ones(1000)), {})
    memory = writer._snapshot._buffer.data_ptr()
    threading.Timer(0.3, gate.set).start()
    writer.save(2, whole(state=torch.full((1000,), 2.0)), {})
    writer.wait()
    first, second = writer.poll()
    assert (first.ok, second.ok) == (True, True)
    assert second.stall_s > 0.2
    assert writer._snapshot._buffer.data_ptr() == memory
    for step in (1, 2):
        values = read_all(open_checkpoint(tmp_path / f"step_0000000{step}"))["state"]
        assert torch.equal(values, torch.full((1000,), float(step)))
    writer.close()


def test_close_does_not_wait_for_a_rank_that_is_gone(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, world=2)
    writer.save(1, whole(state=torch.ones(3)), {})
    begin = time.monotonic()
    writer.close(patience_s=0.2)
    assert time.monotonic() - begin < 5
    (result,) = writer.poll()
    assert result.error == "not every rank wrote its part before the run ended."
    assert names_in(tmp_path) == []


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.checkpoint.exchange._FAREWELL_S", 0.1)
    result = save(tmp_path, 1, whole(a=torch.ones(3)), world=2, patience_s=0.1)
    assert not result.ok
    assert result.error == "not every rank wrote its part within 0.1 s."


def test_inline_saves_stall_for_all_of_it(tmp_path: Path) -> None:
    result = save(tmp_path, 1, whole(a=torch.ones(3)), asynchronous=False)
    assert result.ok
    assert result.stall_s == result.seconds


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [8]), (2, 0, [7, 8]), (2, 3, [3, 6, 7, 8]), (0, 0, [8]), (20, 0, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_keep_policy(tmp_path: Path, keep_last: int, keep_every: int, kept: list[int]) -> None:
    writer = make_writer(tmp_path, keep_last=keep_last, keep_every=keep_every)
    for step in range(1, 9):
        writer.save(step, whole(a=torch.tensor(step)), {})
    writer.close()
    assert names_in(tmp_path) == [f"step_{step:08d}" for step in kept]
    assert all(result.ok for result in writer.poll())


def test_a_damaged_newer_checkpoint_is_not_counted_as_one_that_is_kept(tmp_path: Path) -> None:
    for step in (1, 9):
        save(tmp_path, step, whole(a=torch.tensor(step)))
    (tmp_path / "step_00000009" / "manifest.json").unlink()
    save(tmp_path, 4, whole(a=torch.tensor(4)))
    assert names_in(tmp_path) == ["step_00000001", "step_00000004", "step_00000009"]
    assert find(tmp_path).step == 4
    save(tmp_path, 9, whole(a=torch.tensor(99)), keep_last=1)  # in place of the damaged one
    assert names_in(tmp_path) == ["step_00000009"]
    assert read_all(find(tmp_path))["a"].item() == 99


def test_leftovers_of_a_crash_are_tidied_up(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, whole(a=torch.tensor(step)))
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000003.tmp")
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000001.replaced")
    (tmp_path / "step_00000002").rename(tmp_path / "step_00000002.replaced")  # a crash between two renames
    (tmp_path / "mine.tmp").mkdir()
    make_writer(tmp_path, rank=1, world=2)
    assert len(names_in(tmp_path)) == 5  # rank 0's business
    make_writer(tmp_path)
    assert names_in(tmp_path) == ["mine.tmp", "step_00000001", "step_00000002"]
    assert find(tmp_path).step == 2


def test_a_failed_replacement_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, whole(a=torch.tensor(1)))
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    result = save(tmp_path, 1, whole(a=torch.tensor(2)))
    assert not result.ok
    assert "Input/output error" in result.error
    assert names_in(tmp_path) == ["step_00000001"]
    assert read_all(find(tmp_path))["a"].item() == 1


def test_what_cannot_be_saved_is_reported_not_raised(tmp_path: Path) -> None:
    one = torch.ones(1)
    twice = [Entry("a", (2,), (0,), one), Entry("a", (2,), (0,), one)]
    cases = {
        "twice": (twice, {}),
        "boxes of tensor 'a' hold 1": (twice[:1], {}),
        "lies outside": ([Entry("a", (2,), (2,), one)], {}),
        "complex64": (whole(a=torch.ones(1, dtype=torch.complex64)), {}),
        "two global shapes": ([twice[0], Entry("a", (3,), (1,), one)], {}),
        "not JSON serializable": (whole(a=one), {"x": object()}),
        "broken copy": (_breaking(), {}),
    }
    assert save(tmp_path, 1, whole(a=one)).ok
    for text, (entries, meta) in cases.items():
        result = save(tmp_path, 2, entries, meta)
        assert not result.ok
        assert text in result.error
        assert len(result.error.splitlines()) == 1
        assert names_in(tmp_path) == ["step_00000001"]


def _breaking() -> Iterator[Entry]:
    yield Entry("a", (1,), (0,), torch.ones(1))
    raise RuntimeError("broken\ncopy")


def test_one_failing_rank_fails_the_save_on_all(tmp_path: Path) -> None:
    store = dist.HashStore()

    def rank(number: int) -> list[SaveResult]:
        writer = make_writer(tmp_path, rank=number, world=3, store=store)
        for step, dtype in ((1, torch.float32), (2, torch.float64 if number == 1 else torch.float32)):
            writer.save(step, [Entry("a", (3,), (number,), torch.ones(1, dtype=dtype))], {})
        writer.save(3, [] if number == 2 else [Entry("a", (2,), (number,), torch.ones(1))], {})
        writer.close()
        return writer.poll()

    for results in in_threads(3, rank):
        assert [(r.step, r.ok) for r in results] == [(1, True), (2, False), (3, True)]
        assert results[1].error == "ranks hand over a with different global shapes or dtypes."
    assert names_in(tmp_path) == ["step_00000001", "step_00000003"]
    assert len(names_in(tmp_path / "step_00000003")) == 3  # a rank that owns nothing writes no file


def test_a_part_that_rank_0_cannot_see_fails_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(folder: Path, manifest: Manifest) -> Path:
        next(folder.glob("*.tmp/*.safetensors")).unlink()
        return commit(folder, manifest)

    monkeypatch.setattr("engine.checkpoint.folder.commit", lose)
    result = save(tmp_path, 1, whole(a=torch.ones(1)))
    assert "do all ranks share this folder?" in result.error
    assert names_in(tmp_path) == []


def test_writers_one_after_another_on_one_store_do_not_mix(tmp_path: Path) -> None:
    store = dist.HashStore()
    late = make_writer(tmp_path, rank=1, world=2, store=store)  # of a start that ended before it saved
    assert late.poll() == []
    first = make_writer(tmp_path, rank=0, world=2, store=store, patience_s=0.2)
    first.save(1, [Entry("a", (2,), (0,), torch.zeros(1))], {})
    first.wait()
    assert not first.poll()[0].ok

    def rank(number: int) -> SaveResult:
        writer = make_writer(tmp_path, rank=number, world=2, store=store)
        writer.save(1, [Entry("a", (2,), (number,), torch.full((1,), 1.0 + number))], {})
        writer.close()
        return writer.poll()[0]

    assert all(result.ok for result in in_threads(2, rank))
    assert read_all(find(tmp_path))["a"].tolist() == [1.0, 2.0]


def _train_and_read(rank: int, world: int, folder: str) -> tuple[int, list[float], list[str | None]]:
    """Save twice while collectives run, then read the other half of the columns."""
    store = dist.distributed_c10d._get_default_store()
    writer = make_writer(Path(folder), rank=rank, world=world, store=store)
    state = torch.arange(8.0).view(4, 2)[2 * rank : 2 * rank + 2].clone()
    for step in (1, 2):
        writer.save(step, [Entry("w", (4, 2), (2 * rank, 0), state)], {"step": step})
        for _ in range(20):
            dist.all_reduce(torch.ones(10))
        state += 10

    writer.wait()
    errors = [result.error for result in writer.poll()]
    writer.close()

    def agree(mine: bool) -> bool:
        vote = torch.tensor(int(mine))
        dist.all_reduce(vote, dist.ReduceOp.MIN)
        return bool(vote)

    checkpoint = find_checkpoint(Path(folder), rank=rank, world=world, agree=agree)
    out = torch.empty(4, 1)
    checkpoint.read("w", (0, rank), out)
    return checkpoint.step, out.flatten().tolist(), errors


def test_ranks_save_beside_collectives_and_read_another_cut(tmp_path: Path) -> None:
    for rank, (step, column, errors) in enumerate(run_ranks(2, _train_and_read, str(tmp_path))):
        assert step == 2
        assert errors == [None, None]
        assert column == [10.0 + rank + 2 * row for row in range(4)]


def test_a_save_that_would_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked by rank 0 before any rank writes, against 1.2 times the largest checkpoint there is."""
    disk = {"total": 10**12, "free": 10**12}
    begun: list[str] = []
    write = Snapshot.write

    def noted(self: Snapshot, path: Path) -> object:
        begun.append(path.parent.name)
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", noted)
    monkeypatch.setattr("engine.checkpoint.writer.shutil.disk_usage", lambda path: SimpleNamespace(**disk))
    store = dist.HashStore()
    writers = [make_writer(tmp_path, rank=rank, world=2, store=store) for rank in range(2)]

    def save_both(step: int) -> list[SaveResult]:
        def save_one(rank: int) -> SaveResult:
            writers[rank].save(step, [Entry("a", (2000,), (1000 * rank,), torch.ones(1000))], {})
            writers[rank].wait()
            return writers[rank].poll()[0]

        return in_threads(2, save_one)

    disk["free"] = int(1.2 * 8000) - 1  # the first save has only its own size to go by
    assert not any(result.ok for result in save_both(1))
    disk["free"] += 1
    assert all(result.ok for result in save_both(2))
    assert not any(result.ok for result in save_both(3))  # with headers and manifest it was larger
    disk["free"] = 20_000
    assert all(result.ok for result in save_both(4))
    disk.update(free=0)
    for result in save_both(5):
        assert result.error is not None
        assert result.error.startswith(
            f"{tmp_path} has 0.0 MB free, and a checkpoint wants 0.0 MB (1.2 times its size)"
        )
    disk.update(total=0)  # a disk that does not know its size
    assert all(result.ok for result in save_both(6))
    assert sorted(begun) == sorted(f"step_0000000{step}.tmp" for step in (2, 4, 6) for _ in range(2))
    for writer in reversed(writers):
        writer.close()
