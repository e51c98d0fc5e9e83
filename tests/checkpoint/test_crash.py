"""Processes that die or lack room while they save."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint.reader import open_checkpoint
from tests.checkpoint.helpers import find, make_writer, names_in, read_all, save, whole

ROOT = Path(__file__).parents[2]
ELEMENTS = 1_000_000

SAVE_FOR_EVER = """
import itertools, sys, torch
from pathlib import Path
from tests.checkpoint.helpers import make_writer, whole
writer = make_writer(Path(sys.argv[1]))
for step in itertools.count(1):
    writer.save(step // 3 + 1, whole(a=torch.full((%d,), float(step)), step=torch.tensor(step)), {"save": step})
    for result in writer.poll():
        assert result.ok, result
        print(result.step, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.006, 0.015, 0.04])
def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, delay_s: float) -> None:
    process = start(SAVE_FOR_EVER % ELEMENTS, tmp_path)
    assert process.stdout is not None
    saved = [int(process.stdout.readline()) for _ in range(4)][-1]
    time.sleep(delay_s)
    process.kill()
    process.wait()
    make_writer(tmp_path)  # the next start tidies up
    assert all(name.startswith("step_") and name[5:].isdigit() for name in names_in(tmp_path))
    found = find(tmp_path)
    assert found is not None
    assert found.step >= saved
    assert found.warnings == []
    values = read_all(found)
    assert values["step"].item() == found.meta["save"]
    assert torch.equal(values["a"], torch.full((ELEMENTS,), float(found.meta["save"])))


TOO_LARGE = """
import resource, sys, torch
from pathlib import Path
from tests.checkpoint.helpers import make_writer, whole
folder = Path(sys.argv[1])
writer = make_writer(folder, asynchronous=sys.argv[2] == "True")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for step, elements in ((2, 1_000_000), (3, 10)):
    writer.save(step, whole(a=torch.full((elements,), float(step))), {})
    writer.wait()
    (result,) = writer.poll()
    print(result.ok, result.error, sorted(path.name for path in folder.iterdir()))
writer.close()
"""


@pytest.mark.parametrize("asynchronous", [True, False])
def test_no_room_leaves_the_old_one_and_training_goes_on(tmp_path: Path, asynchronous: bool) -> None:
    assert save(tmp_path, 1, whole(a=torch.ones(3))).ok
    process = start(TOO_LARGE, tmp_path, str(asynchronous))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    failed, fine = output.splitlines()
    assert failed.startswith("False rank 0: [Errno 27] File too large")
    assert failed.endswith("['step_00000001']")
    assert fine == "True None ['step_00000001', 'step_00000003']"
    assert read_all(open_checkpoint(tmp_path / "step_00000001"))["a"].tolist() == [1, 1, 1]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = save(tmp_path / "file" / "checkpoints", 1, whole(a=torch.ones(3)))
    assert not result.ok
    assert "Not a directory" in result.error
    assert str(tmp_path) in result.error


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
