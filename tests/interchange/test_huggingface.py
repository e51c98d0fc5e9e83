"""Logits and gradients equal transformers' from the same weights, and folders travel both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from engine.checkpoint.entry import Entry
from engine.checkpoint.reader import Checkpoint, find_checkpoint
from engine.checkpoint.writer import CheckpointWriter
from engine.config import ModelConfig
from engine.errors import ConfigError
from engine.generate import load_model, logits
from engine.interchange.folder import FAMILIES, export_folder, family_of, import_folder
from engine.models.transformer import count_parameters, parameter_shapes, plain_chunk
from engine.parallel.sharding import pieces_of
from tests.layouts import GPT, LLAMA

transformers = pytest.importorskip("transformers")

VOCAB = 61
LLAMAS: dict[str, dict[str, Any]] = {
    "gqa-untied": LLAMA,
    "mqa-tied": {**LLAMA, "kv_heads": 1, "tied_embeddings": True},
    "biases": {**LLAMA, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "wide-heads": {**LLAMA, "head_dim": 6, "rope_theta": 500.0, "norm_eps": 1e-6},
}
GPTS: dict[str, dict[str, Any]] = {"tied": GPT, "untied-odd-ffn": {**GPT, "tied_embeddings": False, "ffn": 30}}
CASES = [("llama", name, traits) for name, traits in LLAMAS.items()] + [("gpt2", n, t) for n, t in GPTS.items()]
case = pytest.mark.parametrize("traits", [c[2] for c in CASES], ids=[f"{c[0]}-{c[1]}" for c in CASES])


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Draw weights and biases that are nowhere at their initial zeros and ones."""
    generator = torch.Generator().manual_seed(3)
    shapes = parameter_shapes(config, VOCAB)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 for name, shape in shapes.items()}


def their_model(config: ModelConfig, weights: dict[str, Tensor]) -> Any:
    """Build transformers' model of the same traits with the same weights, in float64."""
    family = family_of(config)
    settings = {**family.write(config, VOCAB), "attn_implementation": "sdpa"}
    hf_config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModelForCausalLM.from_config(hf_config).double().eval()
    state = {link.theirs: link.join([weights[name] for name in link.ours]) for link in family.links(config)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    assert config.tied_embeddings or not missing
    return model


@pytest.fixture
def true_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm goes through float32 whatever its input is; as an oracle it must not round."""
    from transformers.models.llama import modeling_llama

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)


@case
def test_logits_and_gradients_equal_transformers(traits: dict[str, Any], true_float64: None) -> None:
    config = ModelConfig(**traits)
    weights = random_weights(config)
    ours = plain_chunk(config, VOCAB, torch.float64, torch.device("cpu")).eval()
    with torch.no_grad():
        for weight in ours.parameters():
            weight.copy_(torch.cat([weights[piece.name] for piece in pieces_of(weight)]))
    theirs = their_model(config, weights)
    tokens = torch.randint(VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))
    our_logits, their_logits = logits(ours, tokens), theirs(tokens).logits
    assert (our_logits - their_logits).norm() <= 1e-10 * their_logits.norm()
    slope = torch.randn(our_logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (our_logits * slope).sum().backward()
    (their_logits * slope).sum().backward()
    grads = {}
    for weight in ours.parameters():
        parts = weight.grad.split([piece.shape[0] for piece in pieces_of(weight)])
        grads |= {piece.name: part for piece, part in zip(pieces_of(weight), parts, strict=True)}
    named = dict(theirs.named_parameters())
    scale = max(grad.norm() for grad in grads.values())
    for link in family_of(config).links(config):
        mine, other = link.join([grads[name] for name in link.ours]), named[link.theirs].grad
        assert (mine - other).norm() <= 1e-10 * scale, link.theirs


def save(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> Checkpoint:
    """Write weights as a checkpoint of a run and open it."""
    import dataclasses

    from engine.config import Config

    writer = CheckpointWriter(
        folder / "checkpoints", rank=0, world=1, store=dist.HashStore(), keep_last=1, keep_every=0, asynchronous=False
    )
    entries = [Entry(f"master/{n}", tuple(w.shape), (0,) * w.ndim, w.float()) for n, w in weights.items()]
    meta = {"config": dataclasses.asdict(Config(model=config)), "vocab_size": VOCAB, "tokenizer": None}
    writer.save(5, entries, meta)
    assert writer.poll()[0].ok
    writer.close()
    found = find_checkpoint(folder / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    assert found is not None
    return found


@case
@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_export_opens_with_from_pretrained_and_comes_back(
    traits: dict[str, Any], shard_bytes: int, tmp_path: Path
) -> None:
    config = ModelConfig(**traits)
    weights = random_weights(config)
    checkpoint = save(tmp_path / "run", config, weights)
    export_folder(checkpoint, None, tmp_path / "hf", shard_bytes)
    assert (tmp_path / "hf" / "model.safetensors").exists() == (shard_bytes == 10**9)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = logits(load_model(checkpoint, torch.device("cpu")), tokens)
        assert (ours - theirs(tokens).logits).norm() <= 1e-5 * ours.norm()
    back = import_folder(tmp_path / "hf", tmp_path / "back")
    assert family_of(back).write(back, VOCAB) == family_of(config).write(config, VOCAB)
    found = find_checkpoint(tmp_path / "back" / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    assert found is not None
    assert found.names() == sorted(f"master/{name}" for name in weights)
    for name, weight in weights.items():
        out = torch.empty(weight.shape)
        found.read(f"master/{name}", (0,) * weight.ndim, out)
        assert torch.equal(out, weight.float()), name


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"sliding_window": 128}, "sliding_window=128 has no counterpart"),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"architectures": ["LamaForCausalLM"]}, "Did you mean 'LlamaForCausalLM'"),
    ],
)
def test_what_cannot_be_represented_is_named(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    found = {**FAMILIES["LlamaForCausalLM"].write(ModelConfig(**LLAMA), VOCAB), **change}
    found = {key: value for key, value in found.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=field):
        import_folder(tmp_path, tmp_path / "run")


def test_a_model_no_family_can_hold_names_the_traits() -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM has no model\.norm=layernorm"):
        family_of(ModelConfig(norm="layernorm"))


@pytest.mark.parametrize(
    ("preset", "vocab", "expected"),
    [("llama2-7b", 32000, 6_738_415_616), ("llama3-8b", 128256, 8_030_261_248), ("gpt2-124m", 50257, 124_439_808)],
)
def test_presets_have_their_published_parameter_counts(preset: str, vocab: int, expected: int) -> None:
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(OmegaConf.load(Path("conf/model") / f"{preset}.yaml"))
    assert isinstance(found, dict)
    config = ModelConfig(**{str(k): v for k, v in found.items() if k != "defaults"})
    assert config.vocab_size in (vocab, None)
    assert count_parameters(config, vocab) == expected


@case
def test_a_folder_that_transformers_saved_is_imported(traits: dict[str, Any], tmp_path: Path) -> None:
    """config.json as transformers itself writes it, with all its default fields."""
    config = ModelConfig(**traits)
    weights = random_weights(config)
    their_model(config, weights).float().save_pretrained(tmp_path / "hf")
    back = import_folder(tmp_path / "hf", tmp_path / "run")
    assert family_of(back).write(back, VOCAB) == family_of(config).write(config, VOCAB)
    found = find_checkpoint(tmp_path / "run" / "checkpoints", rank=0, world=1, agree=lambda mine: mine)
    assert found is not None
    for name, weight in weights.items():
        out = torch.empty(weight.shape)
        found.read(f"master/{name}", (0,) * weight.ndim, out)
        assert torch.equal(out, weight.float()), name
