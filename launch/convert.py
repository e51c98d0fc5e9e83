"""Exchange models with Hugging Face.

    python launch/convert.py export RUN OUT [--dtype bf16]   AutoModelForCausalLM.from_pretrained(OUT) opens OUT
    python launch/convert.py import FOLDER RUN               makes a run folder to train and generate from

RUN to export is a run folder (its newest whole checkpoint is taken) or one checkpoint of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.device import DTYPES
from engine.interchange.convert import export_run, import_folder
from launch.script import exit_code


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    if options.action == "export":
        export_run(options.run, options.out, DTYPES[options.dtype], print)
    else:
        import_folder(options.folder, options.run, print)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="a run of ours to a Hugging Face folder")
    export.add_argument("run", type=Path, help="a run folder, or one of its checkpoints")
    export.add_argument("out", type=Path, help="the folder to make")
    export.add_argument(
        "--dtype", choices=sorted(DTYPES), default="fp32", help="of the weights (fp32, as they are kept)"
    )
    take = actions.add_parser("import", help="a Hugging Face folder to a run folder of ours")
    take.add_argument("folder", type=Path, help="holds config.json and model.safetensors")
    take.add_argument("run", type=Path, help="the run folder to make")
    return parser


if __name__ == "__main__":
    sys.exit(main())
