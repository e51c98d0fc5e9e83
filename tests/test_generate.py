"""Sampling: reproducible, drawn from the right distribution, and from any layout's checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.config import ObjectiveConfig
from engine.generate import generate, load_model
from engine.interchange.convert import export_run
from engine.interchange.saved import SavedModel
from launch.generate import main
from tests.interchange.saved_runs import CONTEXT, MODELS, VOCAB, save_run, small_tokenizer

CPU = torch.device("cpu")
PROMPT = [5, 17, 200, 3]


def load(folder: Path, name: str = "llama", **options: Any) -> Any:
    save_run(folder, MODELS[name], **options)
    return load_model(SavedModel.open(folder), CPU)


def sampled(model: Any, count: int = 20, prompt: list[int] = PROMPT, **options: Any) -> list[int]:
    defaults = {"context": CONTEXT, "temperature": 1.0, "top_k": 0, "seed": 1, "vocab": VOCAB, "stop": None}
    return list(generate(model, prompt, count, **{**defaults, **options}))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_what_transformers_generates(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load(tmp_path / "run", name)
    export_run(tmp_path / "run", tmp_path / "out", torch.float32, lambda text: None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = theirs.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=20, pad_token_id=0)
    assert sampled(model, temperature=0.0) == wanted[0, len(PROMPT) :].tolist()


def test_the_cut_of_the_checkpoint_does_not_matter(tmp_path: Path) -> None:
    assert sampled(load(tmp_path / "a", cuts=1)) == sampled(load(tmp_path / "b", cuts=5))


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    model = load(tmp_path / "run")
    first = sampled(model)
    torch.manual_seed(99)
    assert sampled(model) == first
    assert sampled(model, count=7) == first[:7]
    assert len({tuple(sampled(model, seed=seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("objective", [ObjectiveConfig("masked"), ObjectiveConfig("glm", block_positions=True)])
def test_what_was_not_trained_from_left_to_right_is_refused(
    objective: ObjectiveConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(MODELS["gpt"], positions="learned_2d") if objective.block_positions else MODELS["llama"]
    save_run(tmp_path / "run", model, tokenizer=small_tokenizer(), objective=objective)
    assert main([f"run={tmp_path / 'run'}", "prompt=the sea"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"from left to right, which objective={objective.name} does not train" in error


class Fixed:
    """A model whose logits do not depend on anything."""

    def __init__(self, logits_v: Tensor) -> None:
        self.head = self.row = logits_v

    def __call__(self, hidden: None, tokens_bs: Tensor, ctx: object) -> Tensor:
        return self.row.expand(*tokens_bs.shape, -1)

    def logits(self, x_bsv: Tensor) -> Tensor:
        return x_bsv


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 3)])
def test_draws_follow_the_softmax(temperature: float, top_k: int) -> None:
    row = torch.tensor([0.5, -1.0, 2.0, 1.0, 0.0, 1.5])
    draws = torch.tensor(sampled(Fixed(row), count=1500, temperature=temperature, top_k=top_k, vocab=5))
    allowed = row[:5].double().clone()  # the sixth is beyond the vocabulary
    if top_k:
        allowed[allowed < allowed.sort(descending=True).values[top_k - 1]] = -torch.inf
    wanted = (allowed / temperature).softmax(0) * len(draws)
    found = torch.bincount(draws, minlength=5).double()
    assert (found[wanted == 0] == 0).all()
    seen = wanted > 0
    chi_squared = ((found - wanted)[seen].square() / wanted[seen]).sum()
    assert chi_squared < 20.5  # 99.9% of chi squared with 5 degrees of freedom


def test_only_the_last_tokens_of_the_context_are_seen(tmp_path: Path) -> None:
    model = load(tmp_path / "run", "gpt")
    long = [(7 * n) % VOCAB for n in range(100)]  # more than the table of positions holds
    assert sampled(model, prompt=long) == sampled(model, prompt=long[-CONTEXT:])
    assert sampled(model, prompt=long, context=9) != sampled(model, prompt=long)


def test_it_ends_with_the_document(tmp_path: Path) -> None:
    model = load(tmp_path / "run")
    whole = sampled(model)
    assert sampled(model, stop=whole[6]) == whole[: whole.index(whole[6])]


def test_the_command_prints_the_prompt_and_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = small_tokenizer()
    model = load(tmp_path / "run", tokenizer=tokenizer)
    arguments = [f"run={tmp_path / 'run'}", "prompt=the sea", "tokens=12", "seed=4", "device=cpu"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    prompt = tokenizer.encode("the sea")
    new = sampled(model, 12, prompt, temperature=0.8, top_k=50, seed=4, vocab=tokenizer.vocab_size, stop=tokenizer.eod)
    assert text == tokenizer.decode(prompt + new) + "\n"
    arguments[0] = f"run={tmp_path / 'run' / 'checkpoints' / 'step_00000007'}"
    assert main(arguments) == 0
    assert capsys.readouterr().out == text
    assert main([*arguments, "prompt="]) == 0
    assert capsys.readouterr().out.startswith("<|endoftext|>")


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("promt=x", "Did you mean 'prompt'"),
        ("tokens", "key=value"),
        ("tokens=many", "tokens=many is not a whole number"),
        ("tokens=-1", "tokens=-1"),
        ("temperature=nan", "temperature=nan"),
        ("temperature=hot", "temperature=hot is not a number"),
        ("top_k=-2", "top_k=-2"),
        ("device=gpu", "gpu is unknown"),
        ("run=nowhere", "nowhere is neither a checkpoint nor a run folder"),
        ("run=RUN", "has no tokenizer.json"),
    ],
)
def test_mistakes_take_one_line(argument: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "plain", MODELS["llama"])
    save_run(tmp_path / "run", MODELS["llama"], tokenizer=small_tokenizer())
    argument = argument.replace("RUN", str(tmp_path / "plain"))
    assert main([f"run={tmp_path / 'run'}", argument]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_a_manifest_cannot_point_out_of_its_run(tmp_path: Path) -> None:
    """A tokenizer named ../../x in a checkpoint from elsewhere is not read."""
    small_tokenizer().save(tmp_path / "secret.json")
    save_run(tmp_path / "run", MODELS["gpt"], tokenizer_name="../secret.json")
    assert SavedModel.open(tmp_path / "run").tokenizer_file is None


def test_damaged_newer_checkpoints_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    load(run, tokenizer=small_tokenizer(), step=7)
    main([f"run={run}", "tokens=5"])
    good = capsys.readouterr().out
    save_run(run, MODELS["gpt"], step=8)
    (run / "checkpoints" / "step_00000008" / "shard-00000.safetensors").write_bytes(b"x")
    assert main([f"run={run}", "tokens=5"]) == 0
    output = capsys.readouterr()
    assert output.out == good
    assert "skipped the damaged checkpoint" in output.err
