"""Vocabulary-parallel embedding: each tp rank holds a range of rows and the ranks' look-ups are summed.

The ranges differ by one row at most, so a vocabulary that tp does not divide needs no padding, and global shapes
never depend on the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.ops.embedding import lookup
from engine.parallel.collectives import all_reduce, gather_sequence, start_scatter_sequence
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import EMBEDDING, Init, parameter, vocabulary_rows


class _SumOverRanks(torch.autograd.Function):
    """Sum partial [b, s, h] over tp (my sequence shard under SP); backward gives every rank the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x_bsh: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        if tp.shards_sequence:
            shard_bsh, handle = start_scatter_sequence(x_bsh, tp.axis)
            handle.wait()
            return shard_bsh
        x_bsh = x_bsh.clone()
        all_reduce(x_bsh, tp.axis)
        return x_bsh

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        tp = ctx.tp
        return (gather_sequence(grads[0], tp.axis) if tp.shards_sequence else grads[0]), None


class VocabEmbedding(nn.Module):
    """tokens [b, s] int64 -> [b, s, h] (my sequence shard under SP). `weight` holds my rows of [vocab, h]."""

    def __init__(self, name: str, vocab: int, hidden: int, init: Init, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        piece = vocabulary_rows(name, (vocab, hidden), init, tp.axis, EMBEDDING)
        self.start, self.rows = piece.offsets[0], piece.shape[0]
        self.weight = parameter([piece], tp.dtype, tp.device)

    def forward(self, tokens_bs: Tensor) -> Tensor:
        if self.tp.axis.size == 1:
            return lookup(self.weight, tokens_bs)
        local_bs = tokens_bs - self.start
        foreign_bs = (local_bs < 0) | (local_bs >= self.rows)
        # Foreign tokens look up any row, here a different one each: a single one would be a hot spot on GPUs.
        x_bsh = lookup(self.weight, local_bs.remainder(self.rows)).masked_fill(foreign_bs[..., None], 0.0)
        return _SumOverRanks.apply(x_bsh, self.tp)
