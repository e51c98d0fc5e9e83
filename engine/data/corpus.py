"""Documents from files: plain text (one document a file), JSON lines, and the text every Python carries with it."""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import DataError, explained

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Skipped:
    """Lines and files that could not be read as text, counted while a corpus is read."""

    bad_json: int = 0
    bad_utf8: int = 0
    no_text: int = 0

    def describe(self) -> str:
        notes = [f"{self.bad_json} lines of bad JSON" if self.bad_json else "",
                 f"{self.bad_utf8} texts with bad UTF-8" if self.bad_utf8 else "",
                 f"{self.no_text} lines without the text field" if self.no_text else ""]  # fmt: skip
        return ", ".join(note for note in notes if note)


def builtin_files() -> list[Path]:
    """Return the standard library's modules, without its tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo"}
    files = [path for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts)]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def find_files(patterns: Sequence[str], key: str = "data.paths") -> list[Path]:
    """Return the files that paths and globs name, in order; raise DataError for a pattern that finds nothing.

    `key` is where the configuration names them.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not matches:
            raise DataError(f"{key}: no file is called '{pattern}'.")
        found.extend(Path(match) for match in matches)
    return found


def documents(files: Sequence[Path], kind: str, jsonl_key: str, skipped: Skipped) -> Iterator[str]:
    """Yield the documents of `files`; `kind` is text, jsonl, auto (by ending) or builtin."""
    if kind == "builtin":
        yield from _builtin(files, skipped)
        return
    for path in files:
        with explained(f"{path} cannot be read", "leave it out of the configuration or make it readable"):
            if kind == "jsonl" or (kind == "auto" and path.suffix.lower() in (".jsonl", ".ndjson", ".json")):
                yield from _json_lines(path, jsonl_key, skipped)
            else:
                text = _decode(path.read_bytes(), skipped)
                if text is not None:
                    yield text


def _builtin(files: Sequence[Path], skipped: Skipped) -> Iterator[str]:
    """Yield modules and Python's reference topics, mixed by a hash of their names.

    Splits are ranges of documents: in alphabetical order the validation part would be another kind of text.
    """
    from pydoc_data.topics import topics

    named: list[tuple[str, Path | str]] = [(path.as_posix(), path) for path in files]
    named += [(f"topic {name}", topics[name]) for name in topics]
    root = sysconfig.get_paths()["stdlib"]
    for _, source in sorted(named, key=lambda item: hashlib.blake2b(item[0].removeprefix(root).encode()).digest()):
        text = _decode(source.read_bytes(), skipped) if isinstance(source, Path) else source
        if text is not None:
            yield text


def _json_lines(path: Path, key: str, skipped: Skipped) -> Iterator[str]:
    missing = 0
    read = 0
    with path.open("rb") as file:
        for line in file:
            text = _decode(line.removeprefix(codecs.BOM_UTF8), skipped)
            if text is None or not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):  # no JSON, or numbers and nesting that only an attacker writes
                skipped.bad_json += 1
                continue
            read += 1
            if not isinstance(record, dict) or not isinstance(record.get(key), str):
                missing += 1
            elif _LONE_SURROGATE.search(record[key]):  # JSON can spell half a character, which no encoding can hold
                skipped.bad_utf8 += 1
            else:
                yield record[key]
    skipped.no_text += missing
    if read and missing == read:
        raise DataError(
            f"{path}: no line has a text field '{key}'; set data.jsonl_key to the field that holds the text."
        )


def _decode(raw: bytes, skipped: Skipped) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        skipped.bad_utf8 += 1
        return None
