"""Train a small model on any layout and put its weights back together, to compare with `tests.oracle`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from engine.config import Config, ModelConfig
from engine.data.batch import MicroBatch
from engine.device import Device
from engine.mesh import Mesh
from engine.models.transformer import plain_chunk
from engine.objectives.choose import make_objective
from engine.ops import backend
from engine.parallel.sharding import Piece, pieces_of
from engine.step import Stepper
from tests import oracle, prevention
from tests.objectives.words import Words

VOCAB = 61  # tp does not divide it
CPU = Device(torch.device("cpu"), "gloo")

LLAMA: dict[str, Any] = {
    "layers": 4, "hidden": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "tied_embeddings": False, "init_std": 0.2,
}  # fmt: skip
GPT: dict[str, Any] = {
    "layers": 4, "hidden": 16, "heads": 4, "kv_heads": 4, "ffn": 24, "norm": "layernorm", "positions": "learned",
    "activation": "gelu_tanh", "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
    "tied_embeddings": True, "init_std": 0.2, "hidden_dropout": 0.1, "attention_dropout": 0.1,
    "embedding_dropout": 0.1, "max_positions": 32,
}  # fmt: skip


def make_config(**groups: dict[str, Any]) -> Config:
    """Return a typed Config from overrides by group, with test-sized defaults."""
    base = {
        "model": dict(LLAMA),
        "data": {"seq_len": 16},
        "optim": {"lr": 1e-2, "clip": 0.5},
        "precision": {"dtype": "fp64"},
        "train": {"global_batch": 8, "micro_batch": 2, "seed": 7},
        "parallel": {"bucket_mb": 0.005},
        "ops": {"backend": "auto", "head_block_mb": 0.005},  # a few tokens at a time
    }
    schema = OmegaConf.structured(Config)
    merged = OmegaConf.merge(schema, base, groups)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def make_batch(config: Config, step: int, *, masked: bool = False) -> dict[str, torch.Tensor]:
    """Return one synthetic global batch: tokens, labels, mask [global batch, seq]."""
    rng = np.random.default_rng([step, 5])
    shape = (config.train.global_batch, config.data.seq_len + 1)
    window = torch.from_numpy(rng.integers(0, VOCAB, shape))
    mask = torch.ones(shape[0], shape[1] - 1)
    if masked:  # replicas and micro-batches with very different numbers of tokens
        mask = torch.from_numpy(rng.random(mask.shape) < rng.random((shape[0], 1))).float()
    if config.objective.name != "causal":
        return _objective_batch(config, step, rng)
    batch = {"tokens_bs": window[:, :-1], "labels_bs": window[:, 1:], "mask_bs": mask}
    if config.data.document_mask:
        documents = torch.from_numpy(np.cumsum(rng.random(mask.shape) < 0.2, axis=1))
        batch["documents_bs"] = documents
        starts = torch.arange(mask.shape[1]).expand(mask.shape).clone()
        starts[:, 1:][documents[:, 1:] == documents[:, :-1]] = 0
        batch["positions_bs"] = torch.arange(mask.shape[1]) - starts.cummax(dim=1).values
    return batch


def _objective_batch(config: Config, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return what the objective makes of random windows with random documents in them."""
    words = Words()
    words.vocab_size = VOCAB
    objective = make_objective(config.objective, config.data, config.train.seed, words)
    size, s = config.train.global_batch, config.data.seq_len
    examples = []
    for slot in range(size):
        window = rng.integers(VOCAB // 2, VOCAB, objective.stride + 1)  # lower ones are special tokens
        starts = np.flatnonzero(rng.random(objective.stride + 1) < 0.2)
        examples.append(objective(window, starts[starts > 0], step * size + slot))
    names = {"tokens": "tokens_bs", "labels": "labels_bs", "loss_mask": "mask_bs", "positions": "positions_bs",
             "documents": "documents_bs", "prefix": "prefix_bs", "blocks": "blocks_bs"}  # fmt: skip
    batch = {}
    for field, name in names.items():
        rows = [getattr(example, field) for example in examples]
        if rows[0] is not None:
            batch[name] = torch.from_numpy(np.stack(rows))
    assert batch["tokens_bs"].shape == (size, s)
    return batch


def micro_batches(config: Config, batch: dict[str, torch.Tensor], dp_rank: int, dp: int) -> list[MicroBatch]:
    """Cut a replica's part out of a global batch."""
    size = config.train.micro_batch
    micros = []
    for index in range(dp_rank, config.train.global_batch // size, dp):
        part = slice(index * size, (index + 1) * size)
        micros.append(
            MicroBatch(
                tokens_bs=batch["tokens_bs"][part],
                labels_bs=batch["labels_bs"][part],
                loss_mask_bs=batch["mask_bs"][part],
                positions_bs=batch["positions_bs"][part] if "positions_bs" in batch else None,
                documents_bs=batch["documents_bs"][part] if "documents_bs" in batch else None,
                slots_b=torch.arange(part.start, part.stop),
                prefix_bs=batch["prefix_bs"][part] if "prefix_bs" in batch else None,
                blocks_bs=batch["blocks_bs"][part] if "blocks_bs" in batch else None,
            )
        )
    return micros


def layout_stepper(config: Config, device: Device = CPU) -> Stepper:
    """Build an initialised Stepper on this rank (dp is what the world leaves)."""
    parallel, world = config.parallel, torch.distributed.get_world_size()
    dp = world // (parallel.tp * parallel.pp)
    stepper = Stepper(config, VOCAB, Mesh(pp=parallel.pp, dp=dp, cp=1, tp=parallel.tp, device=device), device)
    stepper.initialise()
    return stepper


def train_layout(rank: int, world: int, config: Config, steps: int, masked: bool = False) -> dict[str, Any]:
    """Body of a rank: train `steps` steps; return losses, norms and my counted pieces of the weights."""
    backend.select(config.ops.backend)
    return train_here(config, steps, masked=masked)


def train_here(config: Config, steps: int, device: Device = CPU, *, masked: bool = False) -> dict[str, Any]:
    """Train as this rank of the world that was joined; see `train_layout`."""
    stepper = layout_stepper(config, device)
    losses, norms = [], []
    for step in range(steps):
        batch = make_batch(config, step, masked=masked)
        micros = micro_batches(config, batch, stepper.mesh.dp.rank, stepper.mesh.dp.size)
        result = stepper.run(
            step,
            micros,
            config.optim.lr,
            loss_scale=config.precision.loss_scale if config.precision.dtype == "fp16" else 1.0,
        )
        losses.append(result.loss.item())
        norms.append(result.grad_norm.item())
    return {"losses": losses, "norms": norms, "pieces": local_pieces(stepper)}


def local_pieces(stepper: Stepper) -> list[tuple[Piece, np.ndarray]]:
    """Return every piece this rank holds with its values (float64)."""
    return [
        (_plain(item.piece), bucket.params[item.start : item.stop].view(item.piece.shape).double().cpu().numpy().copy())
        for bucket in stepper.buckets.buckets
        for item in bucket.placed
    ]


def _plain(piece: Piece) -> Piece:
    """A piece without its process group, which cannot travel between processes."""
    return replace(piece, reduce=None)


def assemble(results: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Put the global tensors together from all ranks' pieces; copies must agree bitwise."""
    whole: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for result in results:
        for piece, values in result["pieces"]:
            tensor = whole.setdefault(piece.name, np.zeros(piece.global_shape))
            filled = seen.setdefault(piece.name, np.zeros(piece.global_shape, dtype=bool))
            span = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.shape, strict=True))
            old, was_filled = tensor[span], filled[span]
            assert (old[was_filled] == values[was_filled]).all(), f"copies of {piece.name} differ"
            tensor[span], filled[span] = values, True
    for name, filled in seen.items():
        assert filled.all(), f"no rank holds all of {name}"
    return {name: torch.from_numpy(values) for name, values in whole.items()}


def initial_weights(config: ModelConfig, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Draw the whole initial weights by global name, in one process."""
    chunk = plain_chunk(config, VOCAB, dtype, torch.device("cpu"))
    drawn = {}
    for weight in chunk.parameters():
        for piece in pieces_of(weight):
            drawn[piece.name] = piece.draw(seed, dtype, torch.device("cpu"))
    return drawn


def train_oracle(config: Config, steps: int, masked: bool = False) -> dict[str, Any]:
    """Train the plain model on the same batches; return losses, norms and weights by name."""
    seed, o = config.train.seed, config.optim
    model = oracle.PlainModel(config.model, initial_weights(config.model, seed), seed, config.train.z_loss)
    batches = [make_batch(config, step, masked=masked) for step in range(steps)]
    if o.clip_mode == "adagc":
        losses, norms = prevention.train(model, batches, o)
    else:
        losses, norms = oracle.train(
            model, batches, lr=[o.lr] * steps, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay,
            clip=o.clip, decay_embeddings=o.decay_embeddings,
        )  # fmt: skip
    return {"losses": losses, "norms": norms, "weights": {n: w.detach() for n, w in model.weights.items()}}
