"""torch.distributed.tensor: DTensor tensor parallelism, with and without sequence parallelism.

The plan is the one of torch's tensor-parallel tutorial and of torchtitan: attention and feed-forward receive their
input as one DTensor, so that the gradients of wq, wk, wv (w1, w3) are summed before the one reduction, and the loss
works on vocabulary shards (`loss_parallel`).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from tests.bench.peers.llama import Llama, gradients, make_optimizer, token_loss
from tests.bench.sizes import CLIP, Sizes


class TensorParallelPeer:
    """The plain model under `parallelize_module` over all ranks."""

    def __init__(self, sizes: Sizes, weights: dict[str, Tensor], *, sequence_parallel: bool) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.model = Llama(sizes, weights)
        parallelize_module(self.model, mesh, make_plan(sizes.layers, sequence_parallel))
        self.optimizer = make_optimizer(self.model.parameters())

    def step(self, window: Tensor) -> tuple[float, float]:
        """Train on a global batch; return its mean loss and the gradient's norm before clipping."""
        with loss_parallel():
            loss = token_loss(self.model(window[:, :-1]), window[:, 1:])
            loss.backward()
        norm = clip_gradients(list(self.model.parameters()))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return _whole(loss).item(), norm.item()


def make_plan(layers: int, sequence_parallel: bool) -> dict[str, ParallelStyle]:
    """Return how each module is split; `stream` is the layout of the residual stream."""
    stream: Placement = Shard(1) if sequence_parallel else Replicate()
    plan: dict[str, ParallelStyle] = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=stream),
        "output": ColwiseParallel(input_layouts=stream, output_layouts=Shard(-1), use_local_output=False),
    }
    for layer in range(layers):
        block: dict[str, ParallelStyle] = {
            "attention": PrepareModuleInput(
                input_layouts=(stream, None, None), desired_input_layouts=(Replicate(), None, None)
            ),
            "attention.wq": ColwiseParallel(),
            "attention.wk": ColwiseParallel(),
            "attention.wv": ColwiseParallel(),
            "attention.wo": RowwiseParallel(output_layouts=stream),
            "feed_forward": PrepareModuleInput(input_layouts=(stream,), desired_input_layouts=(Replicate(),)),
            "feed_forward.w1": ColwiseParallel(),
            "feed_forward.w3": ColwiseParallel(),
            "feed_forward.w2": RowwiseParallel(output_layouts=stream),
        }
        if sequence_parallel:
            block |= {"attention_norm": SequenceParallel(), "ffn_norm": SequenceParallel()}
        plan |= {f"layers.{layer}.{name}": style for name, style in block.items()}
    if sequence_parallel:
        plan["norm"] = SequenceParallel()
    return plan


def clip_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """Clip by the global norm over sharded and replicated parameters, which one foreach call cannot mix."""
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    plain = [p for p in parameters if not isinstance(p, DTensor)]
    norm = _whole(nn.utils.get_total_norm(gradients(sharded)))
    if plain:
        norm = torch.hypot(norm, nn.utils.get_total_norm(gradients(plain)))
        nn.utils.clip_grads_with_norm_(plain, CLIP, norm)
    nn.utils.clip_grads_with_norm_(sharded, CLIP, norm)
    return norm


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
