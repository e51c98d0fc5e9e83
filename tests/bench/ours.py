"""Trimaran's side: `engine.step.Stepper` through a Config, as the trainer calls it, without data and files."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.config import Config, ModelConfig
from engine.data.batch import MicroBatch
from engine.device import Device
from engine.mesh import Mesh
from engine.ops import backend
from engine.parallel.sharding import Piece
from engine.step import Stepper
from tests.bench.sizes import BETAS, CLIP, EPS, LEARNING_RATE, WEIGHT_DECAY, Sizes


class Trimaran:
    """A stepper with given weights on `parallel` (fields of ParallelConfig), `micro_batch` samples per pass."""

    def __init__(
        self, sizes: Sizes, weights: dict[str, Tensor], parallel: dict[str, Any], micro_batch: int, dtype: str = "fp32"
    ) -> None:
        config = make_config(sizes, parallel, micro_batch)
        config.precision.dtype = dtype
        backend.select(config.ops.backend)
        tp, pp = config.parallel.tp, config.parallel.pp
        device = Device(torch.device("cpu"), "gloo")
        mesh = Mesh(pp=pp, dp=dist.get_world_size() // (tp * pp), cp=1, tp=tp, device=device)
        self.micro_batch, self.count = micro_batch, 0
        self.stepper = Stepper(config, sizes.vocab, mesh, device)
        self.stepper.optimizer.set_masters(lambda piece: cut(weights[piece.name], piece))
        self.stepper.optimizer.publish()

    def step(self, window: Tensor) -> tuple[float, float]:
        """Train on my share of a global batch; return its mean loss and the gradient's norm before clipping."""
        result = self.stepper.run(self.count, self.micro_batches(window), LEARNING_RATE).read()
        self.count += 1
        return result.loss, result.grad_norm

    def micro_batches(self, window: Tensor) -> list[MicroBatch]:
        """Cut a global batch [samples, seq + 1] into this replica's micro-batches."""
        dp, size = self.stepper.mesh.dp, self.micro_batch
        parts = [slice(start, start + size) for start in range(0, len(window), size)][dp.rank :: dp.size]
        return [
            MicroBatch(
                tokens_bs=window[part, :-1], labels_bs=window[part, 1:], loss_mask_bs=None, positions_bs=None,
                documents_bs=None, slots_b=torch.arange(part.start, part.stop),
            )
            for part in parts
        ]  # fmt: skip


def make_config(sizes: Sizes, parallel: dict[str, Any], micro_batch: int) -> Config:
    """Return the configuration that equals the peers' model, optimizer and batch."""
    config = Config()
    config.model = ModelConfig(
        layers=sizes.layers, hidden=sizes.hidden, heads=sizes.heads, ffn=sizes.ffn, vocab_size=sizes.vocab,
        norm_eps=sizes.norm_eps, rope_theta=sizes.rope_theta, tied_embeddings=False,
    )  # fmt: skip
    config.data.seq_len = sizes.seq
    config.train.global_batch, config.train.micro_batch = sizes.samples, micro_batch
    config.optim.lr, config.optim.eps, config.optim.weight_decay = LEARNING_RATE, EPS, WEIGHT_DECAY
    config.optim.beta1, config.optim.beta2 = BETAS
    config.optim.clip = CLIP
    for name, value in parallel.items():
        setattr(config.parallel, name, value)
    return config


def cut(weight: Tensor, piece: Piece) -> Tensor:
    """Return the box of a whole weight that `piece` holds."""
    for dim, (offset, length) in enumerate(zip(piece.offsets, piece.shape, strict=True)):
        weight = weight.narrow(dim, offset, length)
    return weight.contiguous()
