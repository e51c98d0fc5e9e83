"""Exchange models with Hugging Face.

    python launch/convert.py export RUN OUT     OUT opens with AutoModelForCausalLM.from_pretrained(OUT)
    python launch/convert.py import FOLDER RUN  RUN becomes a run folder; start from it with checkpoint.load=RUN

RUN is a run folder (its newest whole checkpoint is read) or a checkpoint folder of one.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.checkpoint.reader import Checkpoint, find_checkpoint, open_checkpoint
from engine.config import ModelConfig
from engine.errors import CheckpointError, EngineError
from engine.interchange.folder import export_folder, import_folder


def open_run(path: Path) -> tuple[Checkpoint, Path]:
    """Return the checkpoint that a run or checkpoint folder means, and the run folder."""
    if (path / "manifest.json").exists():
        return open_checkpoint(path), path.parent.parent
    found = find_checkpoint(path / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    if found is None:
        raise CheckpointError(f"{path} is neither a checkpoint nor a run folder that holds one.")
    return found, path


def export_run(run: Path, out: Path) -> str:
    checkpoint, folder = open_run(run)
    name = checkpoint.meta.get("tokenizer")
    export_folder(checkpoint, folder / name if name else None, out)
    return f"{out}: step {checkpoint.step} of {folder} for transformers"


def import_run(source: Path, run: Path) -> str:
    config = import_folder(source, run)
    plain, changed = dataclasses.asdict(ModelConfig()), dataclasses.asdict(config)
    settings = " ".join(f"model.{key}={value}" for key, value in changed.items() if value != plain[key])
    return f"{run}: start from it with checkpoint.load={run} {settings}"


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    actions = {"export": export_run, "import": import_run}
    if len(arguments) != 3 or arguments[0] not in actions:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(actions[arguments[0]](Path(arguments[1]), Path(arguments[2])))
    except EngineError as error:
        print(f"trimaran: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
