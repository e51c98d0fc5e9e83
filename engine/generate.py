"""Text out of a checkpoint: load it from any layout into one process and sample, reproducibly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.checkpoint.state import load_parameters
from engine.data.batch import MicroBatch
from engine.interchange.saved import SavedModel
from engine.models.transformer import Chunk, make_pass, plain_chunk
from engine.ops.philox import make_key, uniform


def load_model(saved: SavedModel, device: torch.device, dtype: torch.dtype = torch.float32) -> Chunk:
    """Return the whole model, ready for `logits`; CheckpointError when the tensors are those of another one."""
    model = plain_chunk(saved.config, saved.vocab, dtype, device).eval()
    load_parameters(saved.checkpoint, model.parameters())
    return model


def logits(model: Chunk, tokens_bs: Tensor) -> Tensor:
    """Return [b, s, vocabulary] for int64 tokens."""
    slots = torch.arange(tokens_bs.shape[0], device=tokens_bs.device)
    micro = MicroBatch(tokens_bs, tokens_bs, None, None, None, slots)
    return model.logits(model(None, tokens_bs, make_pass(micro, None)))


def generate(
    model: Chunk,
    prompt: list[int],
    count: int,
    *,
    context: int,
    temperature: float,
    top_k: int,
    seed: int,
    vocab: int,
    stop: int | None,
) -> Iterator[int]:
    """Yield up to `count` tokens after `prompt`, ending at token `stop`.

    The model sees the last `context` tokens. Temperature 0 takes the likeliest token; otherwise the number of the
    token and `seed` address its random draw, so a prompt has one continuation. Rows of the vocabulary from `vocab`
    on are padding and never drawn.
    """
    tokens = list(prompt)
    for number in range(count):
        window = torch.tensor([tokens[-context:]], device=model.head.device)
        with torch.no_grad():
            last_v = logits(model, window)[0, -1, :vocab]
        token = draw(last_v, temperature, top_k, seed, number)
        if token == stop:
            return
        tokens.append(token)
        yield token


def draw(logits_v: Tensor, temperature: float, top_k: int, seed: int, number: int) -> int:
    """Return token `number` of a continuation, as `generate` does, given the logits of every token that may come."""
    logits_v = logits_v.double()
    if temperature == 0:
        return int(logits_v.argmax())
    values, ids = logits_v.topk(min(top_k, len(logits_v)) if top_k else len(logits_v))
    steps = (values / temperature).softmax(0).cumsum(0)
    drawn = uniform(make_key(seed, "sample"), torch.tensor(number)).to(steps.device)
    return int(ids[int((steps < drawn * steps[-1]).sum().clamp(max=len(ids) - 1))])
