"""The sequences of a recorded step's global batch, each with its loss: what people look at after a spike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.checkpoint import folder as folders
from engine.data.build import build_data
from engine.data.samples import Samples
from engine.errors import ConfigError
from engine.generate import load_model
from engine.interchange.saved import SavedModel
from engine.models.transformer import make_pass
from engine.optim.schedules import plan
from engine.parallel.head_loss import Share
from engine.replay import nearest, read_config, records_of
from engine.stability.actions import actions, skips_after
from engine.stability.skips import Skips


@dataclass(frozen=True)
class Sequence:
    """One sample: `position` in the sample order, `documents` it holds parts of, mean `loss` in nats per token."""

    position: int
    source: str
    documents: tuple[int, ...]
    text: str
    loss: float


def batch_of_step(run: Path, step: int, timeline: int | None, device: torch.device) -> tuple[str, list[Sequence]]:
    """Return one line on what is shown, and the sequences that step `step` (counted from 1) was trained on.

    Losses are without dropout, under the weights of the newest checkpoint before the step. ConfigError or
    CheckpointError when the run cannot be read.
    """
    config = read_config(run, step)
    records = records_of(run, timeline)
    found = nearest(run, step, len(records))
    if found is None:
        raise ConfigError(f"{run} holds no checkpoint before step={step} to compute losses with; name a later step.")
    saved = SavedModel.open(folders.step_path(run / "checkpoints", found))
    data = build_data(
        config.data, config.objective, config.train.seed, config.model.vocab_size, config.model.vocab_multiple,
        is_writer=False, barrier=lambda: None, notice=lambda _: None,
    )  # fmt: skip
    meta = saved.checkpoint.meta
    skips = skips_after(Skips.from_plain(meta["stability"]["given"]), actions(records))
    *_, (consumed, batch) = plan(int(meta["consumed_samples"]), step - found, config.train)
    model = load_model(saved, device)
    sequences = []
    for number in range(consumed, consumed + batch):
        position = skips.position(number)
        micro = data.collate([data.train[position]], [number - consumed]).to(device)
        with torch.no_grad():
            hidden_bsh = model(None, micro.tokens_bs, make_pass(micro, None))
            counted = micro.labels_bs.numel() if micro.loss_mask_bs is None else float(micro.loss_mask_bs.sum())
            share = torch.tensor(1.0 / max(1.0, counted), dtype=torch.float64, device=device)
            loss = model.loss(hidden_bsh, micro.labels_bs, Share(micro.loss_mask_bs, share)).item()
        source, documents = _origin(data.train, position)
        tokens = data.train[position].window.tolist()
        text = data.tokenizer.decode(tokens) if data.tokenizer is not None else " ".join(map(str, tokens))
        sequences.append(Sequence(position, source, documents, text, loss))
    about = f"step {step} of {run}: {batch} sequences; losses under the weights of step {found}"
    return about, sequences


def _origin(samples: Samples, position: int) -> tuple[str, tuple[int, ...]]:
    """Return the name of a sample's source and the numbers of its documents there."""
    source, place = samples.locate(position)
    split = samples.splits[source]
    begin, end = split.window(place)
    dataset = split.dataset
    first, last = dataset.document_of(begin), dataset.document_of(end - 1)
    return str(dataset.prefix), tuple(range(first, last + 1))
