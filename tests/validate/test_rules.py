"""Every rule of the configuration: it fires, says so in one line, and its own advice works."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from engine.config import Config
from engine.errors import ConfigError
from engine.validate import resolve_dp, validate


def make(*overrides: str) -> Config:
    config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.from_dotlist(list(overrides)))
    made: Any = OmegaConf.to_object(config)
    return made  # type: ignore[no-any-return]


def refusal(*overrides: str, world: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(make(*overrides), world)
    return str(caught.value)


# overrides of a broken configuration, world size, fields and values the message must name
RULES: list[tuple[str, int | None, tuple[str, ...]]] = [
    ("parallel.tp=3", None, ("parallel.tp=3", "model.heads=4", "parallel.tp=2")),
    ("model.ffn=702 parallel.tp=4", None, ("parallel.tp=4", "model.ffn=702", "parallel.tp=2")),
    ("model.heads=12 model.hidden=240 model.kv_heads=4 model.ffn=720 parallel.tp=6", None,
     ("parallel.tp=6", "model.kv_heads=4")),
    ("model.heads=6", None, ("model.heads=6", "model.hidden=256", "model.heads=4")),
    ("model.kv_heads=3", None, ("model.kv_heads=3", "model.heads=4", "model.kv_heads=2")),
    ("model.head_dim=33", None, ("model.positions=rope", "33", "model.head_dim=34")),
    ("model.positions=learned model.max_positions=128", None, ("data.seq_len=256", "model.max_positions=128")),
    ("data.seq_len=255 parallel.tp=2 parallel.sequence_parallel=true", None,
     ("parallel.tp=2", "data.seq_len=255", "data.seq_len=256")),
    ("data.position_reset=true", None, ("data.position_reset=true", "data.document_mask=true")),
    ("parallel.cp=2", None, ("parallel.cp=2", "parallel.cp=1")),
    ("parallel.pp=5", None, ("parallel.pp", "5", "model.layers=4")),
    ("parallel.pp=2 parallel.schedule=interleaved parallel.virtual_stages=3", None, ("6", "model.layers=4")),
    ("parallel.virtual_stages=2", None, ("parallel.virtual_stages=2", "parallel.schedule=interleaved")),
    ("parallel.schedule=interleaved parallel.virtual_stages=2", None, ("parallel.virtual_stages=2", "parallel.pp")),
    ("parallel.schedule=interleaved parallel.pp=2", None, ("parallel.virtual_stages", "parallel.schedule=1f1b")),
    ("parallel.pp=2 parallel.stage_layers=[1,2,1]", None, ("parallel.stage_layers=[1,2,1]", "2")),
    ("parallel.pp=2 parallel.stage_layers=[1,2]", None, ("parallel.stage_layers=[1,2]", "model.layers=4")),
    ("parallel.tp=2 parallel.dp=2", 2, ("2*1*1*2", "2 ranks", "parallel.dp=1")),
    ("parallel.tp=2 parallel.pp=2", 6, ("2*2*1 = 4", "6 ranks")),
    ("train.global_batch=10 train.micro_batch=4", 1, ("train.global_batch=10", "train.micro_batch", "=12")),
    ("train.global_batch=12 train.micro_batch=2", 4, ("train.global_batch=12", "4*2 = 8", "=16")),
    ("train.ramp=[3,5,100] train.micro_batch=2", 1, ("train.ramp=[3,5,100]", "passes through 3", "micro_batch")),
    ("train.ramp=[4,4]", None, ("train.ramp=[4,4]", "first batch")),
    ("train.ramp=[4,3,100]", None, ("train.ramp=[4,3,100]", "train.global_batch=8")),
    ("parallel.timeout_s=1e300", None, ("parallel.timeout_s=1e+300", "1e+09 or less")),
    ("parallel.bucket_mb=1e308", None, ("parallel.bucket_mb=1e+308", "1e+09 or less")),
    ("ops.head_block_mb=1e308", None, ("ops.head_block_mb=1e+308", "1e+09 or less")),
    ("run.threads=100000", None, ("run.threads=100000", "1024 or less")),
    ("model.init_std=inf", None, ("model.init_std=inf", "out of range")),
    ("data.format=jsonl", None, ("data.format=jsonl", "data.paths")),
    ("data.format=builtin data.paths=[a.txt]", None, ("data.format=builtin", "data.paths")),
    ("data.split=[1,2]", None, ("data.split", "[969,30,1]")),
    ("data.skip=[[0,4611686018427387904]]", None, ("data.skip: 4611686018427387904", "at most 281474976710656")),
    ("data.split=[0,1,1]", None, ("data.split", "[969,30,1]")),
    ("optim.min_lr=1", None, ("optim.min_lr=1", "optim.lr=0.0003")),
    ("optim.lr=0", None, ("optim.lr=0",)),
    ("optim.lr=nan", None, ("optim.lr=nan",)),
    ("optim.beta2=1.0", None, ("optim.beta2=1.0",)),
    ("model.hidden_dropout=1.0", None, ("model.hidden_dropout=1.0",)),
    ("optim.warmup_steps=200", None, ("optim.warmup_steps=200", "train.steps=200", "optim.warmup_steps=20")),
    ("optim.warmup_steps=20 optim.decay_steps=10", None, ("optim.decay_steps=10", "optim.warmup_steps=20")),
    ("optim.wsd_decay_fraction=0", None, ("optim.wsd_decay_fraction=0",)),
    ("optim.clip=-1", None, ("optim.clip=-1",)),
    ("optim.clip_warmup=5", None, ("optim.clip_warmup=5", "optim.clip_mode=global", "optim.clip_mode=zclip")),
    ("optim.clip_memory=0.5", None, ("optim.clip_memory=0.5", "optim.clip_mode=zclip")),
    ("optim.clip_mode=zclip optim.clip_memory=1", None, ("optim.clip_memory=1.0", "below 1")),
    ("optim.clip_mode=zclip optim.clip_z=0", None, ("optim.clip_z=0", "above 0")),
    ("optim.clip_mode=adagc optim.clip_relative=0.9", None, ("optim.clip_relative=0.9", "1 or more")),
    ("optim.update_clip=-1", None, ("optim.update_clip=-1", "0 or more")),
    ("optim.max_update_ratio=nan", None, ("optim.max_update_ratio=nan", "0 or more")),
    ("train.z_loss=-1e-4", None, ("train.z_loss=-0.0001", "0 or more")),
    ("model.embedding_grad=0", None, ("model.embedding_grad=0", "above 0")),
    ("model.embedding_grad=1.5", None, ("model.embedding_grad=1.5", "1 or less")),
    ("precision.dtype=fp16 precision.loss_scale=1000", None, ("precision.loss_scale=1000", "=1024")),
    ("precision.dtype=fp16 precision.loss_scale=2 precision.min_loss_scale=4", None,
     ("precision.min_loss_scale=4", "precision.loss_scale=2")),
    ("model.layers=0", None, ("model.layers=0", "1 or more")),
    ("train.log_interval=0", None, ("train.log_interval=0",)),
    ("checkpoint.keep_last=0", None, ("checkpoint.keep_last=0",)),
    ("parallel.tp=0", None, ("parallel.tp=0", "1 or more")),
    ("ops.overrides.rms_norm=flash", None, ("ops.overrides.rms_norm=flash", "apex, cpu")),
    ("ops.overrides.rmsnorm=reference", None, ("ops.overrides.rmsnorm=reference", "rms_norm")),
    ("ops.backend=flash run.device=cpu", None, ("ops.backend=flash", "cpu device", "ops.backend=auto")),
    ("monitor.straggler_factor=0.5", None, ("monitor.straggler_factor=0.5", "monitor.straggler_factor=2")),
    ("run.max_restarts=-1", None, ("run.max_restarts=-1", "0 or more")),
    ("run.name=../elsewhere", None, ("run.name", "run.root=runs")),
    ("run.name=''", None, ("run.name", "run.root=runs")),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "world", "named"), RULES, ids=[rule[0] for rule in RULES])
def test_rule(overrides: str, world: int | None, named: tuple[str, ...]) -> None:
    message = refusal(*overrides.split(), world=world)
    assert "\n" not in message
    for words in named:
        assert words in message
    advice = re.search(r"write ((\w+\.\w+=\S+[ .,;])+|\w+\.\w+=\S+$)", message)
    if advice is not None and "FILE" not in advice[1]:
        validate(make(*overrides.split(), *(word.rstrip(".,;") for word in advice[1].split())), world)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.norm=rmsnrm", "rmsnorm"),
        ("model.positions=rop", "rope"),
        ("model.activation=swish", "swiglu"),
        ("precision.dtype=bf61", "bf16"),
        ("parallel.schedule=1fb1", "1f1b"),
        ("parallel.recompute=ful", "full"),
        ("optim.schedule=cosin", "cosine"),
        ("optim.clip_mode=adgc", "adagc"),
        ("optim.beta2_schedule=plam", "palm"),
        ("data.format=json", "jsonl"),
        ("monitor.wandb=ofline", "offline"),
        ("monitor.console=rch", "rich"),
        ("ops.backend=refernce", "reference"),
        ("ops.overrides.rope=flsh", "flash"),
        ("run.device=cda", "cuda"),
    ],
)
def test_misspelt_name_is_answered_with_the_nearest(override: str, nearest: str) -> None:
    assert refusal(override) == f"{override} is unknown. Did you mean '{nearest}'?"


@pytest.mark.parametrize(
    ("overrides", "world"),
    [
        ("", 1),
        ("parallel.sequence_parallel=true", 1),  # nothing to shard over: a no-op
        ("parallel.tp=4 model.kv_heads=2", 4),  # two ranks share a kv head
        ("parallel.pp=2 parallel.schedule=interleaved parallel.virtual_stages=2", 2),
        ("parallel.pp=2 parallel.stage_layers=[1,3] train.ramp=[4,4,100]", 2),
        ("precision.loss_scale=1000", 1),  # only fp16 uses it
        ("parallel.dp=2 train.micro_batch=4", None),
    ],
)
def test_sound_configurations_pass(overrides: str, world: int | None) -> None:
    validate(make(*overrides.split()), world)


@settings(deadline=None)
@given(tp=st.integers(1, 4), pp=st.integers(1, 4), dp=st.none() | st.integers(1, 4), world=st.integers(1, 64))
def test_replicas_fill_the_world_or_are_refused(tp: int, pp: int, dp: int | None, world: int) -> None:
    config = Config()
    config.parallel.tp, config.parallel.pp, config.parallel.dp = tp, pp, dp
    fits = tp * pp * dp == world if dp is not None else world % (tp * pp) == 0
    if fits:
        assert resolve_dp(config, world) * tp * pp == world
    else:
        with pytest.raises(ConfigError):
            resolve_dp(config, world)


@settings(deadline=None)
@given(
    first=st.integers(1, 12), increment=st.integers(1, 6), growth=st.integers(0, 5), micro=st.integers(1, 4),
    dp=st.integers(1, 3),
)  # fmt: skip
def test_every_batch_of_a_ramp_can_be_dealt(first: int, increment: int, growth: int, micro: int, dp: int) -> None:
    """Accepted exactly when each size the schedule really uses is a whole number of micro-batches per replica."""
    from engine.optim.schedules import plan

    last = first + growth * increment
    config = Config()
    config.train.ramp, config.train.global_batch, config.train.micro_batch = [first, increment, 100], last, micro
    sizes = {size for _, size in plan(0, 200, config.train)}
    sound = all(size % (dp * micro) == 0 for size in sizes)
    with contextlib.nullcontext() if sound else pytest.raises(ConfigError):
        validate(config, dp)
