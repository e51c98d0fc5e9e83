"""A rank's part of the model: the chunks that its pipeline stage and its place in tp give it."""

from __future__ import annotations

from engine.config import Config
from engine.mesh import Mesh
from engine.models.registry import ACTIVATIONS, POSITIONS
from engine.models.transformer import Chunk
from engine.parallel.linear import TensorParallel
from engine.parallel.pipeline.partition import split_layers


def build_chunks(config: Config, vocab: int, mesh: Mesh, tp: TensorParallel) -> list[Chunk]:
    """Build my chunks, with weights that are not initialised: virtual stage v = chunk * pp + stage, in model order.

    Collective: every rank must call it.
    """
    c, model = config, config.model
    kv_axis = mesh.tensor_subgroup(max(1, mesh.tp.size // (model.kv_heads or model.heads)))
    count = mesh.pp.size * c.parallel.virtual_stages
    ranges = split_layers(model.layers, count, c.parallel.stage_layers, *_end_costs(c, vocab))
    shared = POSITIONS.get(model.positions).shared(model, tp, mesh.pp)
    return [
        Chunk(model, vocab, ranges[virtual], tp, kv_axis=kv_axis, embedding_axis=mesh.embedding,
              recompute=c.parallel.recompute, head_block_mb=c.ops.head_block_mb, z_loss=c.train.z_loss, shared=shared)
        for virtual in range(mesh.pp.rank, len(ranges), mesh.pp.size)
    ]  # fmt: skip


def _end_costs(config: Config, vocab: int) -> tuple[float, float]:
    """Return the cost of the embedding and of the head in units of one block's matrix products.

    The look-up costs next to nothing; the head multiplies by a [vocab, hidden] matrix.
    """
    model = config.model
    dim = model.head_dim or model.hidden // model.heads
    attention = 2 * model.hidden * dim * (model.heads + (model.kv_heads or model.heads))
    block = attention + (3 if ACTIVATIONS.get(model.activation).gated else 2) * model.hidden * model.ffn
    return 0.0, vocab * model.hidden / block
