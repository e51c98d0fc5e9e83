"""Folders that transformers opens, and back into run folders."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.generate import load_model, logits
from engine.interchange import convert
from engine.interchange.convert import export_run, import_folder
from engine.interchange.saved import SavedModel
from launch.convert import main
from tests.interchange.saved_runs import CONTEXT, GPT, LLAMA, MODELS, VOCAB, masters, save_run, small_tokenizer
from tests.models.hf import exact_norms, random_tokens

CPU = torch.device("cpu")


def quiet(text: str) -> None:
    """No one reads these notices."""


def near(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file_bytes", [10**9, 100_000])
def test_there_and_back(name: str, file_bytes: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run, out, back = tmp_path / "run", tmp_path / "out", tmp_path / "back"
    weights = save_run(run, MODELS[name], dtype=torch.float64)
    export_run(run, out, torch.float64, quiet, file_bytes)
    assert (out / "model.safetensors").exists() == (file_bytes == 10**9)
    files = list(out.glob("*.safetensors"))
    assert all(file.stat().st_size < file_bytes + 10_000 for file in files)

    theirs, loading = AutoModelForCausalLM.from_pretrained(
        out, dtype="auto", attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(loading.values()), loading
    exact_norms(theirs)
    tokens = random_tokens()
    with torch.no_grad():
        ours = logits(load_model(SavedModel.open(run), CPU, torch.float64), tokens)
        assert near(ours, theirs(tokens).logits) <= 1e-10

    import_folder(out, back, quiet, shard_bytes=20_000)
    found = masters(back)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert len(list((back / "checkpoints" / "step_00000000").glob("*.safetensors"))) > 1
    export_run(back, tmp_path / "again", torch.float64, quiet, file_bytes)
    for file in files:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("dtype", "kept"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_in_another_precision(dtype: str, kept: torch.dtype, tmp_path: Path) -> None:
    weights = save_run(tmp_path / "run", LLAMA)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", dtype]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {kept}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(kept)[6:]
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    for name, tensor in masters(tmp_path / "back").items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].to(kept).float())


def test_tokenizer_and_text_generation_travel_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = small_tokenizer()
    save_run(tmp_path / "run", LLAMA, tokenizer=tokenizer)
    step = tmp_path / "run" / "checkpoints" / "step_00000007"
    assert main(["export", str(step), str(tmp_path / "out")]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the wind, the  sea\nand <|endoftext|>"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.eod
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eod
    assert model.config.max_position_embeddings == 64
    assert theirs.model_max_length == CONTEXT

    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    saved = SavedModel.open(tmp_path / "back")
    assert saved.tokenizer_file == tmp_path / "back" / "tokenizer.json"
    assert saved.tokenizer_file.read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()
    assert (saved.vocab, saved.context, saved.config.name) == (VOCAB, 64, "out")


def test_without_a_tokenizer_no_special_tokens_are_invented(tmp_path: Path) -> None:
    from transformers import AutoConfig

    save_run(tmp_path / "run", LLAMA)
    export_run(tmp_path / "run", tmp_path / "out", torch.float32, quiet)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.bos_token_id is None  # LlamaConfig's own default is 1
    assert config.eos_token_id is None


def test_how_much_the_model_may_see_at_once(tmp_path: Path) -> None:
    """Rotary positions have no table: the trained length counts. Learned ones end where the table does."""
    for name, config, wanted in (("llama", LLAMA, CONTEXT), ("gpt", GPT, 16)):
        save_run(tmp_path / name, replace(config, max_positions=16))
        assert SavedModel.open(tmp_path / name).context == wanted
        export_run(tmp_path / name, tmp_path / f"{name}-out", torch.float32, quiet)
        plain = json.loads((tmp_path / f"{name}-out" / "config.json").read_text())
        assert plain["max_position_embeddings" if name == "llama" else "n_positions"] == wanted


def test_dropout_that_llama_has_not_is_said_to_be_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    save_run(tmp_path / "run", replace(LLAMA, hidden_dropout=0.25))
    export_run(tmp_path / "run", tmp_path / "out", torch.float32, said.append)
    assert "model.hidden_dropout=0.25 is left out" in said[0]


@pytest.fixture
def gpt(tmp_path: Path) -> dict[str, Tensor]:
    """Export a GPT to tmp_path/out; return its weights by our names."""
    weights = save_run(tmp_path / "run", GPT)
    export_run(tmp_path / "run", tmp_path / "out", torch.float32, quiet)
    return weights


def test_names_as_the_published_gpt2_has_them(gpt: dict[str, Tensor], tmp_path: Path) -> None:
    """The Hub's gpt2 lacks the prefix and stores its causal masks; other files repeat the tied matrix."""
    file = tmp_path / "out" / "model.safetensors"
    published = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    published["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    published["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    published["lm_head.weight"] = published["wte.weight"].clone()
    save_file(published, file)
    import_folder(tmp_path / "out", tmp_path / "back", quiet)
    found = masters(tmp_path / "back")
    assert found.keys() == gpt.keys()
    assert all(torch.equal(found[name], gpt[name]) for name in gpt)


def edit_tensors(out: Path, edit: Any) -> None:
    tensors = load_file(out / "model.safetensors")
    edit(tensors)
    save_file(tensors, out / "model.safetensors")


def with_index(out: Path, weight_map: Any) -> None:
    (out / "model.safetensors").rename(out / "part.safetensors")
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


NORM, FUSED = "transformer.ln_f.weight", "transformer.h.1.attn.c_attn.weight"
DAMAGE: dict[str, tuple[Any, str]] = {
    "no config": (lambda out: (out / "config.json").unlink(), "config.json is missing"),
    "config is no JSON": (lambda out: (out / "config.json").write_text("{"), "config.json cannot be read"),
    "config is a list": (lambda out: (out / "config.json").write_text("[]"), "config.json is no JSON object"),
    "no weights": (lambda out: (out / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    "cut off": (
        lambda out: (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-5]),
        "model.safetensors cannot be read",
    ),
    "a tensor is missing": (lambda out: edit_tensors(out, lambda t: t.pop(NORM)), f"lacks {NORM}"),
    "a tensor too many": (
        lambda out: edit_tensors(out, lambda t: t.update(extra=torch.ones(1))),
        "holds transformer.extra|holds extra",
    ),
    "a layer too many": (
        lambda out: edit_tensors(out, lambda t: t.update({FUSED.replace("1", "2"): torch.ones(1)})),
        r"holds transformer\.h\.2",
    ),
    "another shape": (
        lambda out: edit_tensors(out, lambda t: t.update({FUSED: t[FUSED].t().contiguous()})),
        r"c_attn\.weight is \[96, 32\], and \[32, 96\]",
    ),
    "integers": (
        lambda out: edit_tensors(out, lambda t: t.update({NORM: t[NORM].to(torch.int8)})),
        "ln_f.weight is stored as I8",
    ),
    "index leads outside": (lambda out: with_index(out, {NORM: "../part.safetensors"}), "no file of this folder"),
    "index without files": (lambda out: with_index(out, None), "has no weight_map"),
    "index is wrong": (lambda out: with_index(out, {"nothing": "part.safetensors"}), "holds no nothing"),
    "index names a lost file": (lambda out: with_index(out, {NORM: "lost.safetensors"}), "lost.safetensors is missing"),
    "index names a pipe": (
        lambda out: (with_index(out, {NORM: "pipe.safetensors"}), os.mkfifo(out / "pipe.safetensors")),
        "pipe.safetensors is missing, or no plain file",
    ),
    "config is a device": (lambda out: linked(out / "config.json", "/dev/zero"), "config.json is no plain file"),
    "tokenizer is no JSON": (
        lambda out: linked(out / "tokenizer.json", "/etc/passwd"),
        "tokenizer.json cannot be read",
    ),
    "layers without end": (lambda out: in_config(out, n_layer=10**12), r"model.layers=1e\+12 is too large"),
    "more layers than tensors": (lambda out: in_config(out, n_layer=99), "tensors, too few for the 99 layers"),
    "width without end": (lambda out: in_config(out, n_embd=10**19), r"model.hidden=1e\+19 is too large"),
    "not a number": (lambda out: in_config(out, layer_norm_epsilon=math.nan), "model.norm_eps=nan is out of range"),
    "line end in a key": (lambda out: in_config(out, **{"a\nb\x1b[2J": 1}), r"config.json has a\\nb\\x1b\[2J=1"),
}


def linked(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def in_config(out: Path, **values: Any) -> None:
    plain = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(plain | values))


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_folders_are_refused_in_one_line(
    what: str, gpt: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, named = DAMAGE[what]
    damage(tmp_path / "out")
    refused(["import", str(tmp_path / "out"), str(tmp_path / "back")], named, capsys)
    assert not (tmp_path / "back").exists()


def refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Expect exit code 2 and one line that matches `named`."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("trimaran: ")
    assert error.count("\n") == 1
    assert re.search(named, error), error


def test_nothing_is_overwritten(gpt: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    refused(["export", run, out], "already exists", capsys)
    refused(["import", out, run], "already holds checkpoints", capsys)
    refused(["export", str(tmp_path / "nowhere"), str(tmp_path / "x")], "neither a checkpoint nor a run", capsys)


def test_a_full_disk_leaves_nothing_behind(
    gpt: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    monkeypatch.setattr("engine.interchange.hf_folder.save_file", full)
    refused(["export", run, str(tmp_path / "new")], "new could not be written: .*No space left", capsys)
    monkeypatch.setattr(convert.Snapshot, "write", full)
    refused(["import", out, str(tmp_path / "back")], "back could not be written: .*No space left", capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "out", "run"]
    assert not list((tmp_path / "back" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": "red"}, "does not say what model it holds"),
        ({"layers": "two"}, "does not say what model it holds"),
        ({"hidden": 10**12}, r"model.hidden=1e\+12 is too large"),
        ({"layers": 10**4}, "holds too few tensors for 10000 layers"),
        ({"ffn": 10**7}, "mlp.gate.weight is .* there and 10000000x32 here"),
        ({"norm": "__import__('os')"}, "model.norm=.* is unknown"),
    ],
)
def test_a_checkpoint_whose_model_is_nonsense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], named: str
) -> None:
    save_run(tmp_path / "run", LLAMA, lies=changes)
    refused(["export", str(tmp_path / "run"), str(tmp_path / "out")], named, capsys)
