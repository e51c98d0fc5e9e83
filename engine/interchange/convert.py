"""Whole folders: export a run to one that `from_pretrained` opens, import one into a run folder of ours.

Both write aside and rename, and hold only one file's tensors in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from engine.checkpoint import folder as folders
from engine.checkpoint.entry import Entry
from engine.checkpoint.shard import Snapshot, fsync_folder
from engine.checkpoint.state import MASTER
from engine.config import Config, DataConfig, ModelConfig
from engine.data.tokenizer import Tokenizer
from engine.errors import CheckpointError, ConfigError, DataError
from engine.interchange.family import HEAD, Family, Link, left_out
from engine.interchange.hf_folder import CONFIG, StoredWeights, read_json, write_json, write_weights
from engine.interchange.huggingface import family_for, family_of, from_hf, to_hf
from engine.interchange.saved import SavedModel
from engine.models.transformer import parameter_shapes
from engine.validate import validate

FILE_BYTES = 5_000_000_000  # of an exported file, as transformers cuts them
_SHARD_BYTES = 2_000_000_000  # of an imported shard
_TOKENIZER = "tokenizer.json"
_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Notice = Callable[[str], None]


def export_run(source: Path, out: Path, dtype: torch.dtype, notice: Notice, file_bytes: int = FILE_BYTES) -> None:
    """Write the model of a run (or of one checkpoint) to the new folder `out`, its weights in `dtype`."""
    if out.exists():
        raise ConfigError(f"{out} already exists; name a new folder.")
    saved = SavedModel.open(source)
    for warning in saved.checkpoint.warnings:
        notice(warning)
    config = saved.config
    if config.positions == "rope":  # there is no table, so the length it was trained at says more
        config = replace(config, max_positions=max(config.max_positions, saved.context))
    plain = to_hf(config, saved.vocab) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    for setting in left_out(family_for(config), config):
        notice(f"{setting} is left out: {plain['architectures'][0]} has no such dropout, and it acts in training only")
    with _new_folder(out) as aside:
        plain |= _export_tokenizer(saved, aside)
        _export_weights(saved, family_for(config), aside, dtype, file_bytes)
        write_json(aside / CONFIG, plain)
    notice(f"{out}: {plain['architectures'][0]}, step {saved.checkpoint.step}, {plain['torch_dtype']}")


def _export_tokenizer(saved: SavedModel, out: Path) -> dict[str, int | None]:
    """Copy the tokenizer and write how text is generated; return the special tokens for config.json."""
    # Absent keys would be read as transformers' defaults for the family, tokens of another tokenizer.
    special: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None}
    if saved.tokenizer_file is not None:
        tokenizer = Tokenizer.load(saved.tokenizer_file)
        shutil.copyfile(saved.tokenizer_file, out / _TOKENIZER)
        eod = tokenizer.decode([tokenizer.eod])
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": eod, "eos_token": eod,
            "model_max_length": saved.context, "clean_up_tokenization_spaces": False,
        }  # fmt: skip
        write_json(out / "tokenizer_config.json", settings)
        special = dict.fromkeys(special, tokenizer.eod)
    write_json(out / "generation_config.json", {"do_sample": True, **special})
    return special


def _export_weights(saved: SavedModel, family: Family, out: Path, dtype: torch.dtype, file_bytes: int) -> None:
    shapes = parameter_shapes(saved.config, saved.vocab)
    parts: dict[str, list[Link]] = {}
    for name in shapes:
        link = family.link(name)
        parts.setdefault(link.theirs, []).append(link)
    their_shapes = {theirs: links[0].their_shape(shapes[links[0].ours]) for theirs, links in parts.items()}

    def make(theirs: str) -> Tensor:
        tensor = torch.empty(their_shapes[theirs], dtype=dtype)
        for link in parts[theirs]:
            ours = torch.empty(shapes[link.ours], dtype=dtype)
            saved.checkpoint.expect(f"{MASTER}/{link.ours}", ours.shape)
            saved.checkpoint.read(f"{MASTER}/{link.ours}", (0,) * ours.ndim, ours)
            link.put(tensor, ours)
        return tensor

    sizes = {theirs: torch.Size(shape).numel() * dtype.itemsize for theirs, shape in their_shapes.items()}
    write_weights(out, sizes, make, file_bytes)


def import_folder(source: Path, run: Path, notice: Notice, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write a Hugging Face folder's model to `run` as a checkpoint of step 0, with a config to train it by.

    The checkpoint holds weights only, in float32 (float64 where theirs are): training starts with fresh moments.
    """
    if folders.saved_steps(run / "checkpoints"):
        raise ConfigError(f"{run} already holds checkpoints; name a new run folder.")
    plain = read_json(source / CONFIG)
    name = _plain_name(source)
    config = from_hf(plain, name)
    assert config.vocab_size is not None
    has_tokenizer = (source / _TOKENIZER).is_file()
    if has_tokenizer:
        read_json(source / _TOKENIZER)  # a garbled one, or a link to something else, is not copied
    meta = _meta(config, has_tokenizer)
    groups = _entries(source, family_of(plain), config, shard_bytes)
    with _one_line_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        if has_tokenizer:
            shutil.copyfile(source / _TOKENIZER, run / _TOKENIZER)
        conf = _write_experiment(run, config, has_tokenizer)
        _write_checkpoint(run / "checkpoints", groups, meta)
    notice(f"{run}: {plain['architectures'][0]} {name} as step 0; train it, in a run folder of its own, with")
    notice(f"  python launch/pretrain.py --config-dir {conf.parents[1]} experiment={conf.stem}")


def _plain_name(folder: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", folder.resolve().name)


def _meta(config: ModelConfig, has_tokenizer: bool) -> dict[str, Any]:
    whole = Config(model=config, data=DataConfig(seq_len=config.max_positions))
    validate(whole, None)  # what could not be trained is not imported either
    meta = {
        "config": dataclasses.asdict(whole), "vocab_size": config.vocab_size, "weights_only": True,
        "tokenizer": _TOKENIZER if has_tokenizer else None, "consumed_samples": 0,
    }  # fmt: skip
    return json.loads(json.dumps(meta))


def _write_experiment(run: Path, config: ModelConfig, has_tokenizer: bool) -> Path:
    """Write the experiment that trains the imported model; return its file."""
    folder = run.resolve()
    settings: dict[str, Any] = {
        "model": dataclasses.asdict(config),
        "checkpoint": {"load": str(folder)},
        "run": {"name": f"{folder.name}-trained"},
    }
    if has_tokenizer:
        settings["data"] = {"tokenizer": str(folder / _TOKENIZER)}
    path = folder / "conf" / "experiment" / f"{_plain_name(folder)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def _entries(source: Path, family: Family, config: ModelConfig, shard_bytes: int) -> Iterator[list[Entry]]:
    """Check the folder's tensors against the model, all before the first is read; yield ours, a shard at a time."""
    assert config.vocab_size is not None
    weights = StoredWeights(source)
    if config.layers > len(weights.names()):  # before a list of all their tensors is made
        raise DataError(
            f"{source} holds {len(weights.names())} tensors, too few for the {config.layers} layers of its {CONFIG}."
        )
    shapes = parameter_shapes(config, config.vocab_size)
    links = [family.link(name) for name in shapes]
    stored = family.full_names(weights.names())
    _check_names({link.theirs for link in links}, set(stored), family, config, source)
    slices = {link.theirs: weights.slice(stored[link.theirs]) for link in links}
    for link in links:
        _check_tensor(slices[link.theirs], link.their_shape(shapes[link.ours]), f"{source}: {link.theirs}")
    return _grouped(links, slices, shapes, shard_bytes)


def _check_names(wanted: set[str], stored: set[str], family: Family, config: ModelConfig, source: Path) -> None:
    if missing := sorted(wanted - stored):
        raise DataError(f"{source} lacks {missing[0]}, which its {CONFIG} calls for.")
    # a tied output matrix is saved by some, and read by no one
    ignored = {HEAD} if config.tied_embeddings else set()
    extra = sorted(name for name in stored - wanted - ignored if not re.fullmatch(family.buffers, name))
    if extra:
        raise DataError(f"{source} holds {extra[0]}, which a {family.architecture} of its {CONFIG} does not have.")


def _check_tensor(stored: Any, shape: tuple[int, ...], what: str) -> None:
    if tuple(stored.get_shape()) != shape:
        raise DataError(f"{what} is {list(stored.get_shape())}, and {list(shape)} by its {CONFIG}.")
    if stored.get_dtype() not in _STORED:
        raise DataError(f"{what} is stored as {stored.get_dtype()}; only {', '.join(_STORED)} can be imported.")


def _grouped(
    links: list[Link], slices: dict[str, Any], shapes: dict[str, tuple[int, ...]], shard_bytes: int
) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    for link in links:
        values = link.take(slices[link.theirs], shapes[link.ours])
        values = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
        if group and sum(entry.tensor.nbytes for entry in group) + values.nbytes > shard_bytes:
            yield group
            group = []
        group.append(Entry(f"{MASTER}/{link.ours}", shapes[link.ours], (0,) * values.ndim, values))
    yield group


def _write_checkpoint(folder: Path, groups: Iterator[list[Entry]], meta: dict[str, Any]) -> None:
    """Commit a checkpoint of step 0 whose shards are `groups`."""
    aside, snapshot, shards = folders.aside_path(folder, 0), Snapshot(), []
    aside.mkdir(parents=True, exist_ok=True)
    try:
        for number, entries in enumerate(groups):
            file = folders.shard_name(number)
            snapshot.take(entries)
            shards.append(snapshot.write(aside / file))
        folders.commit(folder, folders.merge(0, meta, shards))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `path` once it is whole and on the disk."""
    aside = path.with_name(path.name + ".tmp")
    with _one_line_errors(path):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            for file in aside.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            aside.rename(path)
            fsync_folder(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {' '.join(str(error).split())}") from None
