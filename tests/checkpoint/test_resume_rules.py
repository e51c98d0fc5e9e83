"""What a run may change between its starts: the rule, key by key."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.reader import Checkpoint, open_checkpoint
from engine.checkpoint.resume import ACCEPTABLE, FIXED, check_model, check_run
from engine.config import Config, ObjectiveConfig
from engine.errors import CheckpointError, ConfigError
from engine.validate import validate
from launch.mistakes import known_keys
from tests.checkpoint.helpers import save, whole

CONTENTS = [[7, "aa"], [3, "bb"]]
META: dict[str, Any] = {
    "config": asdict(Config()), "vocab_size": 320, "data": CONTENTS, "consumed_samples": 40, "optimizer_steps": 5.0,
    "loss_scaler": {"scale": 1.0, "clean_steps": 0, "dynamic": False},
}  # fmt: skip

# Another value of each key, and whether a run may go on with it: yes (and it is told), quietly, if accepted, never.
TABLE: list[tuple[str, Any, str]] = [
    ("optim.lr", 1e-4, "told"),
    ("optim.clip", 0.5, "told"),
    ("train.steps", 999, "told"),
    ("train.global_batch", 16, "told"),
    ("train.micro_batch", 2, "told"),
    ("train.ramp", [4, 4, 100], "told"),
    ("train.eval_interval", 7, "told"),
    ("parallel.tp", 2, "told"),
    ("parallel.schedule", "gpipe", "told"),
    ("precision.dtype", "bf16", "told"),
    ("data.document_mask", True, "told"),
    ("model.hidden_dropout", 0.1, "told"),
    ("run.root", "/elsewhere", "quiet"),
    ("monitor.wandb", "offline", "quiet"),
    ("checkpoint.interval", 3, "quiet"),
    ("data.cache_dir", "/elsewhere", "quiet"),
    ("data.paths", ["moved.jsonl"], "quiet"),  # the same texts at another place
    ("model.name", "mine", "quiet"),
    ("train.seed", 7, "acceptable"),
    ("data.seq_len", 128, "acceptable"),
    ("data.split", [90.0, 10.0, 0.0], "acceptable"),
    ("objective.name", "ul2", "acceptable"),  # U-PaLM goes on from PaLM; a sample holds other text then
    ("objective.endings", 0.5, "told"),
    ("model.layers", 5, "never"),
    ("model.kv_heads", 2, "never"),
    ("model.rope_theta", 5e5, "never"),
    ("model.tied_embeddings", False, "never"),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return saved(tmp_path)


def saved(folder: Path, **changes: Any) -> Checkpoint:
    meta = json.loads(json.dumps(META | changes))
    return open_checkpoint(save(folder / "run", 5, whole(a=torch.ones(1)), meta).path)


def changed(key: str, value: Any) -> Config:
    section, name = key.split(".")
    config = Config()
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def accepting(config: Config, *keys: str) -> Config:
    return replace(config, checkpoint=replace(config.checkpoint, accept_changes=list(keys)))


@pytest.mark.parametrize(("key", "value", "rule"), TABLE, ids=[row[0] for row in TABLE])
def test_the_rule(checkpoint: Checkpoint, key: str, value: Any, rule: str) -> None:
    config = changed(key, value)
    if rule == "never":
        with pytest.raises(CheckpointError, match=f"holds another model: {key} is .* there and {value} here"):
            check_model(checkpoint, config, 320)
        return
    check_model(checkpoint, config, 320)
    if rule == "acceptable":
        with pytest.raises(CheckpointError, match=rf"{key} was .*, is .*accept_changes=\[{key}\]") as caught:
            check_run(checkpoint, config, CONTENTS)
        assert "\n" not in str(caught.value)
        config = accepting(config, key)
        validate(config, 1)
    lines = check_run(checkpoint, config, CONTENTS)
    assert len(lines) == (0 if rule == "quiet" else 1)
    assert all(line.startswith(f"changed since step 5: {key} ") and " -> " in line for line in lines)


def test_no_change_is_no_news(checkpoint: Checkpoint) -> None:
    check_model(checkpoint, Config(), 320)
    assert check_run(checkpoint, Config(), CONTENTS) == []


@pytest.mark.parametrize("contents", [[[3, "aa"], [7, "bb"]], [[7, "aa"]], [[7, "aa"], [3, "cc"]]])
def test_other_texts_or_shares_of_them_are_known_by_what_they_hold(checkpoint: Checkpoint, contents: Any) -> None:
    with pytest.raises(CheckpointError, match=r"data.paths was other texts.*accept_changes=\[data.paths\]"):
        check_run(checkpoint, Config(), contents)
    assert "data.paths" in check_run(checkpoint, accepting(Config(), "data.paths"), contents)[0]


def test_all_that_is_wrong_is_told_at_once(checkpoint: Checkpoint) -> None:
    config = changed("train.seed", 7)
    config = replace(config, data=replace(config.data, seq_len=64))
    with pytest.raises(CheckpointError, match=r"train.seed was 1234, is 7, data.seq_len was 256, is 64\. Put them"):
        check_run(checkpoint, config, CONTENTS)
    with pytest.raises(CheckpointError, match=r"other samples: data.seq_len was 256, is 64\. Put it"):
        check_run(checkpoint, accepting(config, "train.seed"), CONTENTS)


def test_more_noise_makes_samples_of_other_text(tmp_path: Path) -> None:
    masked = replace(Config(), objective=ObjectiveConfig(name="masked"))
    checkpoint = saved(tmp_path, config=asdict(masked))
    assert check_run(checkpoint, masked, CONTENTS) == []
    noisier = replace(masked, objective=ObjectiveConfig(name="masked", noise=0.3))
    with pytest.raises(CheckpointError, match=r"objective\.noise was null, is 0\.3"):
        check_run(checkpoint, noisier, CONTENTS)


def test_a_vocabulary_of_another_size_is_another_model(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"model.vocab_size is 320 there and 384 here"):
        check_model(checkpoint, Config(), 384)


def test_the_rule_names_keys_that_exist() -> None:
    assert {*FIXED, *ACCEPTABLE, *(key for key, _, _ in TABLE)} <= set(known_keys())
    with pytest.raises(ConfigError, match=r"names train.sed, .* Did you mean 'train.seed'"):
        validate(accepting(Config(), "train.sed"), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": 3}, {"config": {}}, {"config": {"model": [1]}},
        {"config": {"model": {"kv_heads": None, "heads": 0, "head_dim": None, "hidden": 1}}},
        {"consumed_samples": -1}, {"consumed_samples": 1.5}, {"consumed_samples": "9"},
        {"optimizer_steps": float("nan")}, {"optimizer_steps": None}, {"loss_scaler": []},
        {"loss_scaler": {"scale": "x"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_says_nonsense_of_its_run_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"does not say (what run it is of|how far its run was)"):
        check_run(saved(tmp_path, **changes), Config(), CONTENTS)
