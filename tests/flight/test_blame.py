"""Whom the flight records blame, from records as ranks leave them."""

from __future__ import annotations

import mmap
import socket
from pathlib import Path

import pytest

from engine.flight.blame import find_culprit, members
from engine.flight.failures import describe_hang
from engine.flight.reader import read_records
from engine.flight.recorder import RING, Entry, Recorder, record_path

AXES = "pp=2 dp=2 cp=1 tp=1"


def ranks(folder: Path, world: int = 4) -> list[Recorder]:
    """Recorders that have all made step 6 and are in the forward pass of step 7."""
    found = []
    for rank in range(world):
        recorder = Recorder()
        assert recorder.open(folder, rank, world, AXES) is None
        recorder.begin_step(7)
        recorder.phase("forward")
        found.append(recorder)
    return found


def wait(recorder: Recorder, op: str, axis: str, nbytes: int = 8, peer: int = -1) -> Entry:
    return recorder.start(op, axis, nbytes, peer, waits=True)


def test_a_record_says_what_was_done_last(tmp_path: Path) -> None:
    one, *_ = ranks(tmp_path)
    for number in range(RING + 5):
        entry = one.start("all_gather", "dp", 4096)
        if number != RING + 2:
            one.wait(entry)
            one.done(entry)
    one.background("save.shard", 4)
    record = read_records(tmp_path)[0]
    assert (record.rank, record.world, record.sizes) == (0, 4, (2, 2, 1, 1))
    assert (record.step, record.phase, record.save) == (7, "forward", (4, "save.shard"))
    assert [entry.number for entry in record.collectives] == list(range(6, RING + 6))
    assert [entry.state for entry in record.collectives[-4:]] == ["done", "posted", "done", "done"]
    assert record.collectives[-1].describe() == "all_gather over dp (4,096 bytes)"
    assert one.waited_s > 0


def test_an_entry_that_was_overwritten_is_left_alone(tmp_path: Path) -> None:
    one, *_ = ranks(tmp_path)
    old = one.start("send", "pp", 1, peer=2)
    for _ in range(RING):
        newest = one.start("receive", "pp", 1, peer=2)
    one.done(old)
    assert {entry.state for entry in read_records(tmp_path)[0].collectives} == {"posted"}
    one.done(newest)
    assert read_records(tmp_path)[0].collectives[-1].state == "done"


def test_the_end_of_a_chain_of_waiting_is_to_blame(tmp_path: Path) -> None:
    """Ranks 0 and 1 are the first stage: 0 waits for 2, which waits for its replica 3; 1 waits for 3 as well."""
    zero, one, two, three = ranks(tmp_path)
    wait(zero, "receive", "pp", peer=2)
    wait(one, "receive", "pp", peer=3)
    wait(two, "reduce_scatter", "dp")
    three.phase("backward")
    found = find_culprit(read_records(tmp_path))
    assert found is not None
    assert (found[0].rank, found[1]) == (3, "the others wait for it")
    assert describe_hang(tmp_path).startswith("rank 3 does not come on (the others wait for it): step 7, backward, for")


def test_a_rank_without_a_sign_of_life_is_to_blame_even_inside_a_collective(tmp_path: Path) -> None:
    for recorder in ranks(tmp_path):
        wait(recorder, "all_reduce", "world")
    page = record_path(tmp_path, 2)
    text = page.read_bytes()
    alive = read_records(tmp_path)[2].alive
    page.write_bytes(text.replace(b"alive %.3f" % alive, b"alive %.3f" % (alive - 60)))
    found = find_culprit(read_records(tmp_path))
    assert found is not None
    assert (found[0].rank, found[1]) == (2, "it has given no sign of life since")


def test_collectives_that_do_not_fit_are_shown_side_by_side(tmp_path: Path) -> None:
    for rank, recorder in enumerate(ranks(tmp_path)):
        wait(recorder, "all_reduce", "world", nbytes=28 if rank == 1 else 24)
    found = find_culprit(read_records(tmp_path))
    assert found is not None
    assert found[0].rank == 1
    assert found[1] == "rank 0 is in all_reduce over world (24 bytes): the two do not belong together"


def test_a_cut_network_is_named_where_two_hosts_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks 0 and 1, on host a, are one replica; 2 and 3, on host b, the other."""
    recorders = []
    for rank in range(4):
        monkeypatch.setattr(socket, "gethostname", lambda rank=rank: "ab"[rank // 2])
        recorders.append(Recorder())
        recorders[rank].open(tmp_path, rank, 4, "pp=1 dp=2 cp=1 tp=2")
        recorders[rank].begin_step(3)
    for rank in (0, 2, 3):
        wait(recorders[rank], "reduce_scatter", "dp", nbytes=4096)
    wait(recorders[1], "all_reduce", "tp")  # behind rank 0, in another collective
    found = find_culprit(read_records(tmp_path))
    assert found is not None
    assert found[0].rank == 0
    assert "rank 2 waits for it as well: the network between a and b is down" in found[1]


def test_where_nobody_is_seen_waiting_the_one_behind_is_to_blame(tmp_path: Path) -> None:
    for recorder in ranks(tmp_path)[:3]:
        recorder.phase("read")
    found = find_culprit(read_records(tmp_path))
    assert found is not None
    assert found[0].rank == 3


def test_records_of_an_earlier_attempt_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert Recorder().open(tmp_path, 1, 4, AXES) is None
    assert [(record.rank, record.attempt) for record in read_records(tmp_path)] == [(1, 2)]
    assert record_path(tmp_path, 1).with_suffix(".before.txt").exists()


def test_no_records_blame_nobody(tmp_path: Path) -> None:
    record_path(tmp_path, 0).parent.mkdir()
    record_path(tmp_path, 0).write_bytes(b"\0" * 100)
    assert find_culprit(read_records(tmp_path)) is None


def test_a_folder_that_cannot_be_written_leaves_the_record_in_memory(tmp_path: Path) -> None:
    (tmp_path / "flight").write_text("in the way")
    recorder = Recorder()
    failure = recorder.open(tmp_path, 0, 1, AXES)
    assert failure is not None
    assert "flight" in failure
    recorder.phase("forward")
    assert not isinstance(recorder._page, mmap.mmap)


@pytest.mark.parametrize(
    ("axis", "rank", "group"),
    [("pp", 1, [1, 5, 9]), ("embedding", 5, [1, 9]), ("dp", 4, [4, 6]), ("tp", 7, [6, 7]), ("world", 3, [*range(12)])],
)
def test_members_of_an_axis(axis: str, rank: int, group: list[int]) -> None:
    assert members(rank, (3, 2, 1, 2), axis) == group
