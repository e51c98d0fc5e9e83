"""torch.distributed.pipelining: Schedule1F1B over hand-split stages."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from tests.bench.peers.llama import Llama, gradients, make_optimizer, token_loss
from tests.bench.sizes import CLIP, Sizes


class PipelinePeer:
    """One stage per rank, one sample per micro-batch; `stages` are the layer ranges that Trimaran has too."""

    def __init__(self, sizes: Sizes, weights: dict[str, Tensor], stages: list[tuple[int, int]]) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        self.model = Llama(sizes, weights, stages[rank])
        self.optimizer = make_optimizer(self.model.parameters())
        stage = PipelineStage(self.model, rank, world, torch.device("cpu"))
        self.schedule = Schedule1F1B(stage, n_microbatches=sizes.samples, loss_fn=token_loss)

    def step(self, window: Tensor) -> tuple[float, float]:
        """Train on a global batch; return its mean loss and the gradient's norm over all stages."""
        losses: list[Tensor] = []
        if self.model.tok_embeddings is not None:
            self.schedule.step(window[:, :-1].contiguous())
        else:
            self.schedule.step(target=window[:, 1:].contiguous(), losses=losses)
        loss = torch.stack(losses).mean() if losses else torch.zeros(())
        parameters = list(self.model.parameters())
        sums = torch.stack([loss.detach(), nn.utils.get_total_norm(gradients(parameters)).square()])
        dist.all_reduce(sums)
        norm = sums[1].sqrt()
        nn.utils.clip_grads_with_norm_(parameters, CLIP, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sums[0].item(), norm.item()
