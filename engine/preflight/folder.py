"""The run folder: one that every rank can write, and in which each host sees the files of all others."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.preflight.finding import FAULT, OK, Finding, shorten
from engine.preflight.team import Team


@contextlib.contextmanager
def run_folder(path: Path) -> Iterator[str | None]:
    """Have `path` for as long as this lasts, and yield why it cannot be had; what was made for it goes away again."""
    made: list[Path] = []
    try:
        try:
            for folder in (*reversed(path.parents), path):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
            os.listdir(path)
            trouble = None
        except OSError as error:
            trouble = error.strerror or str(error)
        yield trouble
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody has put something in, or another rank has removed it
                folder.rmdir()


def check_folder(team: Team, path: Path, trouble: str | None) -> list[Finding]:
    """Write a file per rank and look for those of all others; `trouble` says why this rank does not have the folder."""
    token = team.gather(uuid.uuid4().hex)[0]
    mine = path / f".preflight-{token}-{team.rank}"
    try:
        if trouble is None:
            try:
                mine.write_text(token)
            except OSError as error:
                trouble = error.strerror or str(error)
        troubles = team.gather(trouble)  # after this, every file that can be there is there
        expected = [rank for rank in range(team.world) if troubles[rank] is None]
        unseen = [rank for rank in expected if trouble is None and not _seen(path, f".preflight-{token}-{rank}")]
        blind = team.gather(unseen)
    finally:
        with contextlib.suppress(OSError):
            mine.unlink(missing_ok=True)
    return judge_folder(path, troubles, blind, [team.place(rank) for rank in range(team.world)])


def judge_folder(
    path: Path, troubles: Sequence[str | None], unseen: Sequence[list[int]], places: Sequence[str]
) -> list[Finding]:
    """Judge what each rank found: why it could not write (None: it could), and whose files it does not see."""
    found = []
    for reason in dict.fromkeys(trouble for trouble in troubles if trouble is not None):
        who = shorten(place for place, trouble in zip(places, troubles, strict=True) if trouble == reason)
        found.append(Finding(FAULT, "folder", f"{path} cannot be written by {who}: {reason}; write another run.root"))
    blind = next((rank for rank, missing in enumerate(unseen) if missing), None)
    if blind is not None:
        found.append(
            Finding(FAULT, "folder", f"{path} is not shared: {places[blind]} does not see what "
                    f"{places[unseen[blind][0]]} wrote; write a run.root on a disk that all hosts have")
        )  # fmt: skip
    return found or [Finding(OK, "folder", f"{path} can be written by all, and all see the same")]


def _seen(path: Path, name: str) -> bool:
    try:
        return name in os.listdir(path)  # a listing is not answered from a network file system's cache of names
    except OSError:
        return False
