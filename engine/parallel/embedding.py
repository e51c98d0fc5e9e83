"""Vocabulary-parallel embedding: each tp rank holds a range of rows and the ranks' look-ups are summed.

The range is ceil(vocab / tp) rows, so a vocabulary that tp does not divide needs no padding: the last rank
holds fewer rows, and global shapes never depend on the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.parallel.collectives import all_reduce, gather_sequence, start_scatter_sequence
from engine.parallel.linear import TensorParallel
from engine.parallel.sharding import EMBEDDING, Init, parameter, rows, share


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
        self.start, self.stop = share(vocab, tp.axis)
        piece = rows(name, (vocab, hidden), init, self.start, self.stop, EMBEDDING)
        self.weight = parameter([piece], tp.dtype, tp.device)

    def forward(self, tokens_bs: Tensor) -> Tensor:
        if self.tp.axis.size == 1:
            return nn.functional.embedding(tokens_bs, self.weight)
        foreign_bs = (tokens_bs < self.start) | (tokens_bs >= self.stop)
        local_bs = (tokens_bs - self.start).masked_fill(foreign_bs, 0)
        x_bsh = nn.functional.embedding(local_bs, self.weight).masked_fill(foreign_bs[..., None], 0.0)
        return _SumOverRanks.apply(x_bsh, self.tp)
