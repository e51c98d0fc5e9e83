"""Index text ahead of a run: python launch/preprocess.py --output PREFIX [options] FILE...

The result, PREFIX.bin and PREFIX.idx, is Megatron's indexed format; train on it with data=megatron.
python launch/preprocess.py --verify PREFIX... reads such a pair from end to end and says whether it is whole.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.data.corpus import Skipped, documents, find_files
from engine.data.preprocess import index_documents
from engine.data.tokenizer import Tokenizer
from engine.data.verify import verify
from engine.errors import explained
from launch.script import exit_code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="text files, .jsonl files, or globs; prefixes to verify"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", metavar="PREFIX", help="write PREFIX.bin, .idx and .meta.json")
    task.add_argument(
        "--verify", action="store_true", help="check pairs that exist, against --tokenizer if it is given"
    )
    parser.add_argument("--tokenizer", default="train", help="a tokenizer.json, or 'train' (default) for a new BPE")
    parser.add_argument("--vocab", type=int, default=32000, help="vocabulary of a trained tokenizer (32000)")
    parser.add_argument("--jsonl-key", default="text", help="field of each JSON line that holds the text (text)")
    parser.add_argument("--no-eod", action="store_true", help="do not append the end-of-document token")
    parser.add_argument("--workers", type=int, default=0, help="processes (0: one per core)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: check(options) if options.verify else run(options))


def check(options: argparse.Namespace) -> None:
    tokenizer = None if options.tokenizer == "train" else Tokenizer.load(options.tokenizer)
    for prefix in options.files:
        print(verify(prefix.removesuffix(".bin").removesuffix(".idx"), tokenizer))


def run(options: argparse.Namespace) -> None:
    with explained(f"{options.output} cannot be written", "make room there, or write another --output"):
        _index(options)


def _index(options: argparse.Namespace) -> None:
    files, skipped = find_files(options.files), Skipped()

    tokenizer_file = Path(options.tokenizer)
    if options.tokenizer == "train":
        tokenizer_file = Path(f"{options.output}.tokenizer.json")
        Tokenizer.train(documents(files, "auto", options.jsonl_key, Skipped()), options.vocab).save(tokenizer_file)
    meta = index_documents(
        documents(files, "auto", options.jsonl_key, skipped), tokenizer_file, Path(options.output),
        append_eod=not options.no_eod, workers=options.workers, show=True, source=" ".join(options.files),
        skipped=skipped,
    )  # fmt: skip
    left_out = f" (left out: {skipped.describe()})" if skipped.describe() else ""
    print(f"{options.output}: {meta.documents:,} documents, {meta.tokens:,} tokens, "
          f"{meta.empty_documents} empty ones skipped{left_out}; tokenizer {tokenizer_file}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
