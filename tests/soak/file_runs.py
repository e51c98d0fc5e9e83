"""Whole runs on disks that fill, slow down or turn read-only, with changed configurations, or without their log."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tests.data.test_indexed import write_by_hand
from tests.system.runs import REPO, command, corpus, environment, metrics, run, step_folder, weights

STEPS = 40
PATIENCE = 300.0
WIDE = ("model.hidden=192", "model.ffn=512", "checkpoint.interval=4", "checkpoint.keep_last=1", f"train.steps={STEPS}")

# Read by every process of a run that has its folder on PYTHONPATH: a disk behind os.fsync, slow or refusing.
DISK = """
import os, time
_fsync, _here = os.fsync, os.path.dirname(__file__)
def fsync(descriptor):
    for name in os.listdir(_here):
        kind, _, value = name.partition("=")
        if kind == "slow":
            time.sleep(float(value))
        if kind == "refuse":
            raise OSError(int(value), os.strerror(int(value)))
    _fsync(descriptor)
os.fsync = fsync
"""


def start(folder: Path, *overrides: str, modules: Path | None = None) -> subprocess.Popen[str]:
    path = f"{modules}:{REPO}" if modules else str(REPO)
    return subprocess.Popen(
        command(folder, *overrides), cwd=REPO, env=environment(PYTHONPATH=path), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@functools.cache
def undisturbed(*overrides: str) -> dict[str, Tensor]:
    """Return all tensors of the last checkpoint of a run that nothing happens to."""
    with tempfile.TemporaryDirectory() as name:
        corpus(Path(name))
        done = run(Path(name), *overrides, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout
        return weights(max((Path(name) / "default" / "checkpoints").iterdir()))


def equal(checkpoint: Path, theirs: dict[str, Tensor]) -> None:
    ours = weights(checkpoint)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- a disk that refuses for a while ------------------------------------------------------------------------------


def refusing(make: Callable[[Path], Iterator[Callable[[], object]]]) -> Callable[[Path], str]:
    """Return the case: break the disk after the first checkpoint, mend it after the first save that failed.

    `make(folder)` yields twice: a function that breaks the disk, and one that mends it.
    """

    def case(folder: Path) -> str:
        if os.geteuid():
            return "not done: needs root"
        root = folder / "run"
        root.mkdir()
        with contextmanager(make)(root) as (break_it, mend_it, modules):
            corpus(root)
            process = start(root, *WIDE, modules=modules)
            said: list[str] = []
            broken, refused = read_until(process, said, "saved: "), 0
            break_it()
            line = read_until(process, said, "was NOT saved")
            assert "training goes on" in line
            kept = [path.name for path in (root / "default" / "checkpoints").iterdir() if path.suffix != ".tmp"]
            assert len(kept) == 1, kept
            assert weights(root / "default" / "checkpoints" / kept[0]), broken
            mend_it()
            read_until(process, said, "saved: ")
            said.append(process.communicate(timeout=PATIENCE)[0])
            refused = sum(text.count("was NOT saved") for text in said)
            assert process.returncode == 0, "".join(said)
            equal(step_folder(root, STEPS), undisturbed(*WIDE))
        reason = line.partition("NOT saved: ")[2].partition("; training")[0].replace(str(root), "...").strip()
        return f"{refused} saves refused ({reason[:90]}), then saved again; weights as if nothing had been"

    return case


def read_until(process: subprocess.Popen[str], said: list[str], wanted: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if wanted in line:
            return line
    raise AssertionError(f"never said {wanted!r}:\n{''.join(said)}")


def full(root: Path) -> Iterator[object]:
    """A disk of 40 MB, where a checkpoint takes 11, filled to the last byte."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(root)], check=True)
    filler = root / "filler"

    def fill() -> None:
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * (1 << 16))
            except OSError:
                return

    try:
        yield fill, filler.unlink, None
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def read_only(root: Path) -> Iterator[object]:
    """The folder of checkpoints, turned read-only; root writes past mere permissions."""
    folder = str(root / "default" / "checkpoints")

    def lock() -> None:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

    yield lock, lambda: subprocess.run(["umount", "-l", folder], check=True), None


def over_quota(root: Path) -> Iterator[object]:
    """A quota that the disk tells of at fsync, as NFS does."""
    yield from _fsync_refuses(root, 122)


def broken(root: Path) -> Iterator[object]:
    """An I/O error."""
    yield from _fsync_refuses(root, 5)


def _fsync_refuses(root: Path, number: int) -> Iterator[object]:
    modules = disk(root)
    flag = modules / f"refuse={number}"
    yield flag.touch, flag.unlink, modules


def disk(root: Path, *flags: str) -> Path:
    """Return a folder for PYTHONPATH that gives a run the disk described by DISK."""
    modules = root / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(DISK)
    for flag in flags:
        (modules / flag).touch()
    return modules


# -- a slow disk --------------------------------------------------------------------------------------------------

SLOW = ("parallel.dp=2", "train.steps=8", "checkpoint.interval=1")


def slow_disk(folder: Path) -> str:
    corpus(folder)
    process = start(folder, *SLOW, modules=disk(folder, "slow=0.2"))
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    assert said.count("saved: ") == 8, said
    equal(step_folder(folder, 8), undisturbed(*SLOW))
    stalls = [row["checkpoint_stall_s"] for row in metrics(folder) if "checkpoint_stall_s" in row]
    return f"8 of 8 saves, one after the other (training waited up to {max(stalls):.1f} s); not torn"


def killed_while_saving(folder: Path) -> str:
    chance, tries = random.Random(5), 3
    for number in range(tries):
        root = folder / str(number)
        root.mkdir()
        corpus(root)
        process = start(root, *SLOW, modules=disk(root, "slow=0.3"))
        read_until(process, [], "saved: ")
        time.sleep(chance.random())
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # ranks are killed by the kernel when their launcher is gone
        again = run(root, *SLOW)
        assert again.returncode == 0, again.stdout
        assert "damaged" not in again.stdout
        equal(step_folder(root, 8), undisturbed(*SLOW))
    return f"{tries} of {tries} went on from a whole checkpoint to the same weights, bit for bit"


def asked_to_stop_while_saving(folder: Path) -> str:
    corpus(folder)
    process = start(folder, *SLOW[:1], "train.steps=100000", SLOW[2], modules=disk(folder, "slow=0.5"))
    read_until(process, [], "saved: ")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    last = max(row["step"] for row in metrics(folder))
    assert weights(step_folder(folder, last))
    return "both saves ended, the last step is there, exit code 0"


# -- what is given to a run -----------------------------------------------------------------------------------------


def ids_out_of_vocabulary(folder: Path) -> str:
    write_by_hand(
        folder / "c", [[number % 300 for number in range(100)]] * 20 + [[7] * 50 + [301] + [7] * 50], 8, "<u2"
    )
    told = [f"data.paths=[{folder}/c]", "data.tokenizer=none", "model.vocab_size=300", "data.split=[1,0,0]"]
    done = run(folder, *told, "train.steps=40")
    assert done.returncode == 2, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("trimaran: ")]
    assert "c.bin, document 20: token id 301 is outside the vocabulary of 300" in line
    return "refused in one line, with the document"


def changed_configuration(folder: Path) -> str:
    corpus(folder)
    assert run(folder, "train.steps=2").returncode == 0
    for change in ("train.seed=7", "data.seq_len=16", "data.split=[80,20,0]"):
        refused = run(folder, "train.steps=4", change)
        assert refused.returncode == 2, refused.stdout
        key = change.partition("=")[0]
        assert f"or checkpoint.accept_changes=[{key}] to go on" in refused.stdout
    told = run(folder, "train.steps=4", "optim.lr=5e-3", "parallel.tp=2", "train.global_batch=8")
    assert told.returncode == 0, told.stdout
    assert "changed since step 2: parallel.tp 1 -> 2, optim.lr 0.01 -> 0.005, train.steps 2 -> 4" in told.stdout
    accepted = run(folder, "train.steps=6", "train.seed=7", "checkpoint.accept_changes=[train.seed]")
    assert accepted.returncode == 0, accepted.stdout
    assert run(folder, "train.steps=8", "train.seed=7").returncode == 0  # it is the run's own by now
    return "seed, length and split refused and, when named, accepted; rate, layout and batch told"


def links_out_of_a_run(folder: Path) -> str:
    corpus(folder)
    (folder / "default").mkdir()
    (folder / "precious").write_text("years of work")
    (folder / "default" / "metrics.jsonl").symlink_to(folder / "precious")
    refused = run(folder, "train.steps=2")
    assert refused.returncode == 2
    assert "metrics.jsonl is a symbolic link" in refused.stdout
    assert (folder / "precious").read_text() == "years of work"
    return "refused in one line, nothing was written outside"


# -- a run without its log -----------------------------------------------------------------------------------------

WANDBS = {
    "absent": "raise ImportError('No module named wandb')",
    "leaves": "raise SystemExit(3)",
    "crashes": "class Settings:\n def __init__(self, **k): pass\n"
    "class Run:\n define_metric = finish = lambda *a, **k: None\n def log(self, row): raise RuntimeError('gone')\n"
    "def init(**k): return Run()",
}


def wandb_troubles(folder: Path) -> str:
    for name, code in WANDBS.items():
        root = folder / name
        (root / "modules").mkdir(parents=True)
        (root / "modules" / "wandb.py").write_text(code)
        corpus(root)
        process = start(root, "train.steps=3", "monitor.wandb=offline", modules=root / "modules")
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, said
        assert said.count("wandb failed and is off for the rest of this run") == 1, said
        assert len([row for row in metrics(root) if "loss" in row]) == 3
    return f"{', '.join(WANDBS)}: told once, trained on"


def output_nowhere(folder: Path) -> str:
    for name in ("full", "closed"):
        root = folder / name
        root.mkdir()
        corpus(root)
        read, write = os.pipe()
        os.close(read)
        with open("/dev/full", "w") if name == "full" else os.fdopen(write, "w") as output:
            done = subprocess.run(
                command(root, "train.steps=3", "parallel.dp=2"), cwd=REPO, env=environment(), stdout=output,
                stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert step_folder(root, 3).is_dir()
    return "standard output on a full disk, or to a reader that left: trained to the end, saved"


CASES = [
    ("F6", "disk full for a while", refusing(full)),
    ("F6", "checkpoints read-only for a while", refusing(read_only)),
    ("F6", "over quota for a while", refusing(over_quota)),
    ("F6", "I/O errors for a while", refusing(broken)),
    ("F7", "slow disk, a save each step", slow_disk),
    ("F7", "killed while a save is running", killed_while_saving),
    ("F7", "SIGTERM while a save is running", asked_to_stop_while_saving),
    ("F16", "token ids out of the vocabulary", ids_out_of_vocabulary),
    ("F19", "started again with another configuration", changed_configuration),
    ("F20", "run folder with links", links_out_of_a_run),
    ("F22", "wandb absent, leaving, crashing", wandb_troubles),
    ("F22", "nowhere to print", output_nowhere),
]
