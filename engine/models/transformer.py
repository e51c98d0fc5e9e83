"""A pipeline stage's part of the transformer: some of its blocks, and the ends where they belong to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.config import ModelConfig
from engine.data.batch import MicroBatch
from engine.mesh import Axis
from engine.models.block import drop_hidden
from engine.models.inits import matrix, table
from engine.models.registry import BLOCKS, NORMS, POSITIONS
from engine.models.traits import Pass, SharedPositions
from engine.ops.gradient import scale_gradient
from engine.ops.key_ranges import KeyRanges
from engine.parallel.cross_entropy import LossTerms
from engine.parallel.embedding import VocabEmbedding
from engine.parallel.head_loss import Share, head_loss
from engine.parallel.linear import TensorParallel, column_linear
from engine.parallel.sharding import EMBEDDING, MATRIX, VECTOR, Init, parameter, pieces_of, vocabulary_rows

EMBEDDING_LAYER = -1  # the "layer" that addresses dropout on the embeddings


class Chunk(nn.Module):
    """Blocks [start, stop) of the model; the first chunk embeds tokens, the last gives logits.

    `head` is the weight of the output projection on the last chunk: its own, or for tied embeddings the table of
    this chunk, or a second copy of it when another rank embeds (`embedding_axis` of size 2 joins the two). `shared` is
    what all layers have in common; the chunks of a rank have one of it.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab: int,
        layers: tuple[int, int],
        tp: TensorParallel,
        *,
        kv_axis: Axis,
        embedding_axis: Axis,
        recompute: str = "none",
        head_block_mb: float | None = None,
        z_loss: float = 0.0,
        shared: SharedPositions | None = None,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.config, self.tp, self.head_block_mb, self.z_loss = config, tp, head_block_mb, z_loss
        self.is_first, self.is_last = layers[0] == 0, layers[1] == config.layers
        self.embedding_scale = math.sqrt(config.hidden) if config.embedding_scale is None else config.embedding_scale
        self.logit_scale = 1 / math.sqrt(config.hidden) if config.logit_scale is None else config.logit_scale
        norm = NORMS.get(config.norm)
        if self.is_first:
            self.embedding = VocabEmbedding("embedding.weight", vocab, config.hidden, table(config), tp)
            if config.tied_embeddings:
                _share(self.embedding.weight, embedding_axis)
            self.embedding_norm = (
                norm("embedding_norm", config.hidden, config.norm_eps, tp) if config.embedding_norm else nn.Identity()
            )
            self.positions = POSITIONS.get(config.positions)(config, tp, with_table=True)
        block = BLOCKS.get(config.block)
        self.blocks = nn.ModuleList(block(layer, config, tp, kv_axis, recompute) for layer in range(*layers))
        if self.is_last:
            self.final_norm = (
                norm("final_norm", config.hidden, config.norm_eps, tp) if config.final_norm else nn.Identity()
            )
            self.head = self._make_head(vocab, embedding_axis)
            bias = vocabulary_rows("head.bias", (vocab,), Init(), tp.axis, VECTOR)
            self.head_bias = parameter([bias], tp.dtype, tp.device) if config.head_bias else None

    def _make_head(self, vocab: int, embedding_axis: Axis) -> nn.Parameter:
        config, tp = self.config, self.tp
        if not config.tied_embeddings:
            init = matrix(config, config.hidden, vocab)
            piece = vocabulary_rows("head.weight", (vocab, config.hidden), init, tp.axis, MATRIX)
            return parameter([piece], tp.dtype, tp.device)
        if self.is_first:
            return self.embedding.weight
        piece = vocabulary_rows("embedding.weight", (vocab, config.hidden), table(config), tp.axis, EMBEDDING)
        head = parameter([piece], tp.dtype, tp.device)
        _share(head, embedding_axis)
        return head

    def forward(self, hidden_bsh: Tensor | None, tokens_bs: Tensor, ctx: Pass) -> Tensor:
        """Map tokens (first chunk) or hidden states to hidden states, on the last chunk to those that `logits` and
        `loss` take."""
        if hidden_bsh is None:
            x_bsh = scale_gradient(self.embedding(tokens_bs), self.config.embedding_grad)
            x_bsh = self.positions.embed(self.embedding_norm(_scaled(x_bsh, self.embedding_scale)), ctx)
            x_bsh = drop_hidden(x_bsh, self.config.embedding_dropout, ctx, EMBEDDING_LAYER, "embedding", self.tp)
        else:
            x_bsh = hidden_bsh
        if self.shared is not None:
            self.shared(ctx)
        for block in self.blocks:
            x_bsh = block(x_bsh, ctx)
        # The logits' factor, where it is cheapest.
        return _scaled(self.final_norm(x_bsh), self.logit_scale) if self.is_last else x_bsh

    def logits(self, x_bsh: Tensor) -> Tensor:
        """Return my columns of the logits, [b, s, v]."""
        return column_linear(x_bsh, self.head, self.head_bias, self.tp)

    def loss(self, x_bsh: Tensor, labels_bs: Tensor, share: Share) -> Tensor:
        """Return the micro-batch's share of the loss, 0-dim, in training with the z-loss; see `head_loss`."""
        (piece,) = pieces_of(self.head)
        terms = LossTerms(vocab=piece.global_shape[0], z_loss=self.z_loss if self.training else 0.0)
        return head_loss(
            x_bsh, self.head, labels_bs, share, self.tp, bias_v=self.head_bias, terms=terms,
            block_mb=self.head_block_mb,
        )  # fmt: skip


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor


def _share(weight: nn.Parameter, axis: Axis) -> None:
    """Mark a tied table as one of the copies whose gradients add up over `axis`."""
    (piece,) = pieces_of(weight)
    weight.pieces = (piece.shared(axis),)  # type: ignore[attr-defined]


def make_pass(micro: MicroBatch, key: Callable[[int, str], int] | None) -> Pass:
    """Derive what a forward pass needs from a micro-batch on the device."""
    s = micro.tokens_bs.shape[1]
    device = micro.tokens_bs.device
    places_s = torch.arange(s, device=device)
    tokens_bs = micro.slots_b[:, None] * s + places_s
    positions = places_s if micro.positions_bs is None else micro.positions_bs
    if micro.documents_bs is None:
        keys = KeyRanges.causal(s, device)
    else:
        keys = KeyRanges.documents(micro.documents_bs, micro.prefix_bs)
    return Pass(tokens_bs, positions, keys, key, blocks=micro.blocks_bs)


def plain_chunk(config: ModelConfig, vocab: int, dtype: torch.dtype, device: torch.device) -> Chunk:
    """Build the whole model for one process without process groups; its weights are not initialised."""
    alone = Axis("tp", 1, 0, None, (0,))
    tp = TensorParallel(alone, False, dtype, device)
    shared = POSITIONS.get(config.positions).shared(config, tp, alone)
    return Chunk(config, vocab, (0, config.layers), tp, kv_axis=alone, embedding_axis=alone, shared=shared)


def parameter_shapes(config: ModelConfig, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the global name and shape of every distinct parameter, by building the model on the meta device."""
    chunk = plain_chunk(config, vocab, torch.float32, torch.device("meta"))
    return {piece.name: piece.global_shape for weight in chunk.parameters() for piece in pieces_of(weight)}


def count_parameters(config: ModelConfig, vocab: int) -> int:
    """Return the number of distinct parameters of the whole model."""
    return sum(math.prod(shape) for shape in parameter_shapes(config, vocab).values())
