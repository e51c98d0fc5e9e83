"""Plain torch on one rank, and DistributedDataParallel."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.bench.peers.llama import Llama, make_optimizer, token_loss
from tests.bench.sizes import CLIP, Sizes


class OneRank:
    """The whole model on this rank."""

    def __init__(self, sizes: Sizes, weights: dict[str, Tensor], *, compiled: bool = False) -> None:
        self.model: nn.Module = Llama(sizes, weights)
        self.optimizer = make_optimizer(self.model.parameters())
        if compiled:
            self.model.compile()

    def step(self, window: Tensor) -> tuple[float, float]:
        """Train on a global batch; return its mean loss and the gradient's norm before clipping."""
        return _train(self.model, self.optimizer, window)


class Replicas:
    """DDP: each rank trains on its part of the samples; torch averages gradients while the backward pass runs."""

    def __init__(self, sizes: Sizes, weights: dict[str, Tensor]) -> None:
        self.model = DistributedDataParallel(Llama(sizes, weights), gradient_as_bucket_view=True)
        self.optimizer = make_optimizer(self.model.parameters())

    def step(self, window: Tensor) -> tuple[float, float]:
        """Train on my share of a global batch; return its mean loss over all ranks and the gradient's norm."""
        mine = window.chunk(dist.get_world_size())[dist.get_rank()]
        loss, norm = _train(self.model, self.optimizer, mine)
        mean = torch.tensor(loss)
        dist.all_reduce(mean)
        return mean.item() / dist.get_world_size(), norm


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, window: Tensor) -> tuple[float, float]:
    loss = token_loss(model(window[:, :-1]), window[:, 1:])
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()
