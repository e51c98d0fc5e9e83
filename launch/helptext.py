"""The page behind --help: every config group with its options, every key with its default and its comment."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass

import engine.config

_HEAD = """Trimaran trains large language models over a mesh of ranks.

  python launch/pretrain.py [group=option ...] [key=value ...]       starts the ranks itself on this machine
  python launch/pretrain.py cluster=slurm cluster.nodes=N [...]      submits a job; with --dry-run, only writes it
  python launch/pretrain.py -m optim.lr=1e-3,3e-4 [key=value ...]    a sweep, a run for each point
  torchrun [...] launch/pretrain.py [group=option ...] [key=value ...]   uses the ranks it is given; so does srun

== Groups: choose with group=option ==

$APP_CONFIG_GROUPS
model=NAME-tiny is model=NAME at a size that a laptop trains, with the same traits; python launch/models.py tells more.

== Keys: set with key=value ==
"""
_TAIL = """
== Flags ==

$FLAGS_HELP
"""


@dataclass(frozen=True)
class Key:
    """One documented key of a section."""

    name: str
    type: str
    default: str
    comment: str


@dataclass(frozen=True)
class Section:
    """One dataclass of engine.config: the name of its field in Config, its docstring, its keys."""

    name: str
    about: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """Read the sections of Config from the source of engine.config, where the comments are."""
    lines, classes = _source()
    return [
        _section(field.name, classes[field.type], lines)
        for field in _keys(classes["Config"], lines)
        if field.type in classes
    ]


def _loose_keys() -> list[Key]:
    """Return the keys of Config that are no sections."""
    lines, classes = _source()
    return [field for field in _keys(classes["Config"], lines) if field.type not in classes]


def _source() -> tuple[list[str], dict[str, ast.ClassDef]]:
    source = inspect.getsource(engine.config)
    return source.splitlines(), {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def template() -> str:
    """Return the page as a template of Hydra's, its own placeholders left in place."""
    loose = [f"\n{key.name}: {key.type}, {key.default} by default; {key.comment}" for key in _loose_keys()]
    body = "\n".join([*(_render(section) for section in sections()), *loose])
    # Two languages read the page: OmegaConf first (\${ is a plain ${), then string.Template ($$ is a plain $).
    return _HEAD + body.replace("$", "$$").replace("${", "\\${") + _TAIL


def _section(name: str, node: ast.ClassDef, lines: list[str]) -> Section:
    about = " ".join((ast.get_docstring(node) or "").split())
    return Section(name, about, tuple(_keys(node, lines)))


def _keys(node: ast.ClassDef, lines: list[str]) -> list[Key]:
    return [
        Key(item.target.id, ast.unparse(item.annotation), _default(item.value), _comment(item, lines))
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call):  # field(default_factory=list or dict), or of a lambda that returns one
        factory = value.keywords[0].value
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body).replace(" ", "")
        return "{}" if ast.unparse(factory) == "dict" else "[]"
    text = ast.unparse(value) if value is not None else ""
    return {"None": "null", "True": "true", "False": "false"}.get(text, text.strip("'"))


def _comment(item: ast.AnnAssign, lines: list[str]) -> str:
    assert item.end_lineno is not None
    assert item.end_col_offset is not None
    rest = lines[item.end_lineno - 1].encode()[item.end_col_offset :].decode()
    return rest.partition("#")[2].strip()


def _render(section: Section) -> str:
    rows = [f"\n{section.name}: {section.about}"]
    for key in section.keys:
        head = f"  {section.name}.{key.name}={key.default}"
        rows.append(f"{head:<42} {key.type:<18} {key.comment}".rstrip())
    return "\n".join(rows)
