"""A run with validation sets, and its checkpoint scored again on another layout: the same numbers, exactly counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine.data.tokenizer import Tokenizer
from engine.device import Device
from engine.evaluate.lead import Lead, follow
from engine.evaluate.plan import Plan, make_plan
from engine.evaluate.text import TextModel
from engine.evaluate.work import _evaluate, describe, load_forward, write
from engine.mesh import Mesh
from engine.monitor.metrics import set_metrics
from tests.ranks import run_ranks
from tests.system.runs import corpus, metrics
from tests.voyages import settings, train_here

CPU = Device(torch.device("cpu"), "gloo")
TEXTS = {"short": "the sea", "long": "the wind and the sail, naïve café " * 30}


def train_and_score(rank: int, world: int, folder: Path) -> Any:
    sets = {name: str(folder / f"{name}.txt") for name in TEXTS}
    sets["blend"] = [[3, sets["short"]], [1, sets["long"]]]  # type: ignore[assignment]
    config = settings(
        folder, "run", data={"valid": sets}, train={"steps": 2}, parallel={"dp": 2}, precision={"dtype": "fp64"},
        monitor={"console": "off"}, stability={"watch": False},
    )  # fmt: skip
    train_here(rank, world, config)
    dist.barrier()  # the first rank makes the checkpoint whole
    plan = make_plan(folder / "run", None, None, ["parallel.pp=2"])
    found, layout = _evaluate(plan, CPU)
    if rank == 0:
        write(plan, {"layout": layout, **found})
    asked = make_plan(folder / "run", 2, None, ["parallel.tp=2", f"data.valid.other={folder / 'short.txt'}"])
    forward = load_forward(asked.config, asked.checkpoint, Mesh(pp=1, dp=1, cp=1, tp=2, device=CPU))
    if rank == 1:
        follow(forward, Mesh(pp=1, dp=1, cp=1, tp=2, device=CPU))
        return found, asked.to_plain(), None
    with Lead(forward, Mesh(pp=1, dp=1, cp=1, tp=2, device=CPU)) as lead:
        model = TextModel(lead, Tokenizer.load(folder / "run" / "tokenizer.json"), 32, 10**6)
        return found, asked.to_plain(), (model.documents([TEXTS["short"]]), lead.next_logits([[5, 6], [7]])[1].shape)


def test_what_training_logged_is_what_another_layout_finds(tmp_path: Path) -> None:
    corpus(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (found, plain, said), (same, _, _) = run_ranks(2, train_and_score, tmp_path)
    assert found == same, "every rank knows"
    [record] = [row for row in metrics(tmp_path, "run") if "valid_loss" in row]
    logged = set_metrics(record)
    assert set(logged) == {"short", "long", "blend"}
    sets = found["sets"]
    assert set(sets) == {"validation split", *logged}
    assert sets["validation split"]["loss"] == pytest.approx(record["valid_loss"], rel=1e-6)
    tokenizer = Tokenizer.load(tmp_path / "run" / "tokenizer.json")
    for name, text in TEXTS.items():
        score = sets[name]
        for metric, value in logged[name].items():
            assert score[metric] == pytest.approx(value, rel=1e-10)
        assert score["bytes"] == len(text.encode())
        assert score["tokens"] == len(tokenizer.encode(text)) + 1, "and the end of the document"
        bits = score["loss"] * score["tokens"] / math.log(2) / len(text.encode())
        assert score["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
        assert score["perplexity"] == pytest.approx(math.exp(score["loss"]), rel=1e-12)
    short, long, blend = (sets[name] for name in ("short", "long", "blend"))
    assert blend["loss"] == pytest.approx((3 * short["loss"] + long["loss"]) / 4, rel=1e-12)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())["2"]
    assert written["sets"]["long"] == long
    assert "pp=2" in written["layout"]
    assert "bits per byte" in describe(found)
    plan = Plan.from_plain(plain)
    assert (plan.step, plan.split, list(plan.config.data.valid)) == (2, False, ["other"])
    [likelihood], shape = said
    assert 0 < -likelihood < short["loss"] * short["tokens"], "the same tokens but the end of the document"
    assert shape == (plan.config.model.vocab_size,)
