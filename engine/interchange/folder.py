"""Whole model folders: export one that `from_pretrained` opens, import one into a checkpoint of ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.entry import Entry
from engine.checkpoint.reader import Checkpoint
from engine.checkpoint.state import MASTER
from engine.checkpoint.writer import CheckpointWriter
from engine.config import Config, ModelConfig
from engine.data.tokenizer import Tokenizer
from engine.errors import CheckpointError, ConfigError
from engine.interchange.family import Family, Link, find, read_config
from engine.interchange.gpt2 import GPT2
from engine.interchange.llama import LLAMA
from engine.models.transformer import parameter_shapes

FAMILIES = {family.architecture: family for family in (LLAMA, GPT2)}
SHARD_BYTES = 5 * 10**9


def family_of(config: ModelConfig) -> Family:
    """Return the family that can express a model; raise ConfigError naming the trait each one lacks."""
    misses = []
    for family in FAMILIES.values():
        trait = family.fits(config)
        if trait is None:
            return family
        misses.append(f"{family.architecture} has no model.{trait}={getattr(config, trait)}")
    raise ConfigError(f"no Hugging Face family can hold this model: {'; '.join(misses)}.")


def export_folder(
    checkpoint: Checkpoint, tokenizer_file: Path | None, out: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config.json, float32 safetensors and the tokenizer to `out`."""
    config = ModelConfig(**checkpoint.meta["config"]["model"])
    vocab = int(checkpoint.meta["vocab_size"])
    family = family_of(config)
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", family.write(config, vocab))
    _write_tensors(((link.theirs, _read(checkpoint, link)) for link in family.links(config)), out, shard_bytes)
    generation: dict[str, Any] = {"do_sample": True}
    if tokenizer_file is not None:
        tokenizer = Tokenizer.load(tokenizer_file)
        shutil.copyfile(tokenizer_file, out / "tokenizer.json")
        eod = tokenizer.decode([tokenizer.eod])
        _write_json(
            out / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": eod,
                "bos_token": eod,
                "clean_up_tokenization_spaces": False,
            },
        )
        generation |= {"eos_token_id": tokenizer.eod, "bos_token_id": tokenizer.eod}
    _write_json(out / "generation_config.json", generation)


def _read(checkpoint: Checkpoint, link: Link) -> Tensor:
    parts = []
    for name in link.ours:
        shape = checkpoint.global_shape(f"{MASTER}/{name}")
        part = torch.empty(shape, dtype=torch.float32)
        checkpoint.read(f"{MASTER}/{name}", (0,) * len(shape), part)
        parts.append(part)
    return link.join(parts)


def _write_tensors(tensors: Iterator[tuple[str, Tensor]], out: Path, shard_bytes: int) -> None:
    """Write model.safetensors, or numbered shards and their index when the model is larger than one shard."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        weight_map = {name: file for shard, file in zip(shards, files, strict=True) for name in shard}
        size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
    for shard, file in zip(shards, files, strict=True):
        save_file(shard, out / file, metadata={"format": "pt"})


def import_folder(source: Path, run_folder: Path) -> ModelConfig:
    """Make a checkpoint of step 0 in `run_folder` out of a Hugging Face folder; return the model it holds.

    It holds weights only: a run that starts from it begins with fresh optimizer moments.
    """
    config_file = source / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{config_file} is missing; a Hugging Face model folder has one.")
    found = json.loads(config_file.read_text())
    family = find(FAMILIES, (found.get("architectures") or ["(none named)"])[0])
    config = read_config(family, found)
    vocab = found["vocab_size"]
    tokenizer = source / "tokenizer.json"
    meta = {
        "config": dataclasses.asdict(Config(model=config)), "vocab_size": vocab, "weights_only": True,
        "tokenizer": "tokenizer.json" if tokenizer.is_file() else None, "consumed_samples": 0,
    }  # fmt: skip
    run_folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, run_folder / "tokenizer.json")
    writer = CheckpointWriter(
        run_folder / "checkpoints", rank=0, world=1, store=dist.HashStore(), keep_last=1, keep_every=0,
        asynchronous=False,
    )  # fmt: skip
    writer.save(0, _entries(source, family, config, vocab), meta)
    (result,) = writer.poll()
    writer.close()
    if not result.ok:
        raise CheckpointError(f"{run_folder} could not be written: {result.error}")
    return config


def _entries(source: Path, family: Family, config: ModelConfig, vocab: int) -> Iterator[Entry]:
    shapes = parameter_shapes(config, vocab)
    places = _tensor_files(source)
    for link in family.links(config):
        if link.theirs not in places:
            raise CheckpointError(f"{source} lacks the tensor {link.theirs} that its config.json calls for.")
        with safe_open(places[link.theirs], "pt") as file:
            tensor = file.get_tensor(link.theirs).float()
        for name, part in zip(link.ours, link.cut(tensor, [shapes[name][0] for name in link.ours]), strict=True):
            if tuple(part.shape) != shapes[name]:
                raise CheckpointError(
                    f"{source}: {link.theirs} is {tuple(tensor.shape)}, which does not fit {name} {shapes[name]}."
                )
            yield Entry(f"{MASTER}/{name}", shapes[name], (0,) * part.ndim, part)


def _tensor_files(source: Path) -> dict[str, Path]:
    """Return which safetensors file holds which tensor."""
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{source} holds no .safetensors files; pickled weights are never loaded.")
    places: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    return places


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
