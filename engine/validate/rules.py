"""Rules that tie fields of the configuration together, all checked before the first rank allocates memory.

Each rule raises ConfigError with one line: the fields, their values, and what to write instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from engine.checkpoint.resume import ACCEPTABLE
from engine.config import Config
from engine.data.valid_sets import read_valid_sets
from engine.device import DTYPES
from engine.errors import ConfigError, did_you_mean
from engine.faults.plan import read_plan
from engine.models.attention import written_out
from engine.models.inits import INITS, OUTPUT_INITS
from engine.models.registry import ACTIVATIONS, BLOCKS, NORMS, POSITIONS
from engine.models.rules import check_traits
from engine.monitor.profile.steps import profiled_steps
from engine.objectives.rules import check_objective
from engine.ops import backend
from engine.ops.libraries.flash import LARGEST_HEAD
from engine.optim.clipping import CLIP_MODES
from engine.parallel.pipeline.partition import split_layers
from engine.parallel.pipeline.schedule import build
from engine.stability.policy import check_policy
from engine.validate.cluster import check_cluster

_NAMES: dict[str, tuple[str, ...]] = {
    "model.init": tuple(INITS),
    "model.output_init": tuple(OUTPUT_INITS),
    "data.format": ("auto", "builtin", "text", "jsonl", "megatron"),
    "parallel.recompute": ("none", "selective", "full"),
    "optim.schedule": ("constant", "cosine", "linear", "inverse_sqrt", "wsd"),
    "optim.beta2_schedule": ("constant", "palm"),
    "optim.clip_mode": tuple(CLIP_MODES),
    "precision.dtype": tuple(DTYPES),
    "monitor.console": ("auto", "rich", "plain", "off"),
    "monitor.wandb": ("off", "auto", "offline", "online"),
    "run.device": ("auto", "cpu", "cuda"),
    "cluster.kind": ("local", "torchrun", "slurm"),
    "cluster.binding": ("none", "cores", "numa"),
}

_REGISTRIES = (NORMS, POSITIONS, ACTIVATIONS, BLOCKS)

# Smallest allowed value of numbers that have one; null is allowed where the type allows it.
_AT_LEAST: dict[str, int] = {
    "model.layers": 1, "model.hidden": 1, "model.heads": 1, "model.kv_heads": 1, "model.head_dim": 1, "model.ffn": 1,
    "model.vocab_size": 1, "model.vocab_multiple": 1, "model.max_positions": 1, "model.init_std": 0,
    "model.attention_window": 1, "model.window_interval": 1, "model.attention_softcap": 0,
    "model.relative_buckets": 2, "model.rope_scaling": 1, "model.rope_scaling_context": 1,
    "data.tokenizer_vocab": 257, "data.workers": 0, "data.seq_len": 1, "data.prefetch": 0,
    "parallel.tp": 1, "parallel.pp": 1, "parallel.dp": 1, "parallel.cp": 1, "parallel.virtual_stages": 1,
    "optim.min_lr": 0, "optim.warmup_steps": 0, "optim.decay_steps": 1, "optim.weight_decay": 0, "optim.clip": 0,
    "optim.clip_relative": 1, "optim.clip_warmup": 1, "optim.update_clip": 0, "optim.max_update_ratio": 0,
    "precision.loss_scale_window": 1,
    "train.z_loss": 0, "train.steps": 1, "train.micro_batch": 1, "train.global_batch": 1, "train.eval_interval": 0,
    "train.eval_samples": 1, "train.log_interval": 1,
    "checkpoint.interval": 0, "checkpoint.keep_last": 1, "checkpoint.keep_every": 0,
    "monitor.param_norm_interval": 0,
    "monitor.peak_tflops": 0, "monitor.pipeline_interval": 0, "monitor.straggler_factor": 0, "ops.head_block_mb": 0,
    "run.threads": 0, "run.max_restarts": 0,
    "cluster.nodes": 1, "cluster.ranks_per_node": 1, "cluster.node": 0, "cluster.warn_s": 0, "cluster.gpus_per_node": 1,
    "cluster.cpus_per_node": 1, "cluster.max_requeues": 0, "cluster.array_limit": 1,
}  # fmt: skip

# Beyond, clocks and numbers of bytes overflow, and threads cannot be started.
_AT_MOST = {
    "model.layers": 1e5, "model.hidden": 1e6, "model.heads": 1e5, "model.head_dim": 1e5, "model.ffn": 1e7,
    "model.vocab_size": 1e8, "model.max_positions": 1e9, "data.seq_len": 1e9, "train.global_batch": 1e9,
    "ops.head_block_mb": 1e9, "parallel.bucket_mb": 1e9, "parallel.timeout_s": 1e9, "run.threads": 1024,
    "cluster.nodes": 1e6, "cluster.ranks_per_node": 1024, "cluster.warn_s": 65535, "cluster.join_s": 1e6,
    "model.embedding_grad": 1,  # it shrinks
    "model.rope_fraction": 1,
}  # fmt: skip

_ABOVE_ZERO = (
    "model.norm_eps", "model.rope_theta", "model.rope_fraction", "model.rope_scaling_low", "model.embedding_scale",
    "model.attention_scale",
    "model.logit_scale", "model.embedding_grad", "parallel.bucket_mb", "parallel.timeout_s",
    "optim.lr", "optim.eps", "optim.clip_z", "precision.loss_scale", "precision.min_loss_scale",
    "cluster.join_s",
)  # fmt: skip

_SHARES = (  # from 0 up to, but not including, 1
    "model.hidden_dropout", "model.attention_dropout", "model.embedding_dropout", "optim.beta1", "optim.beta2",
    "optim.clip_memory",
)  # fmt: skip


def validate(config: Config, world_size: int | None) -> None:
    """Raise ConfigError for the first rule `config` breaks on `world_size` ranks (None: not known yet)."""
    _check_names(config)
    _check_ranges(config)
    _check_heads(config)
    _check_sequence(config)
    _check_tensor_parallel(config)
    _check_pipeline(config)
    dp = config.parallel.dp if world_size is None else resolve_dp(config, world_size)
    if dp is not None:
        _check_batches(config, dp)
    _check_ramp(config)
    _check_data(config)
    check_objective(config)
    _check_optim(config)
    _check_precision(config)
    check_policy(config.stability)
    _check_ops(config)
    _check_checkpoint(config)
    _check_run(config)
    check_cluster(config.cluster)
    read_plan(config.faults, world_size)


def resolve_dp(config: Config, world_size: int) -> int:
    """Return the number of replicas on `world_size` ranks; raise ConfigError when the layout does not fit them."""
    p = config.parallel
    replica = p.tp * p.pp * p.cp
    if p.dp is not None:
        if replica * p.dp != world_size:
            raise ConfigError(
                f"parallel.tp*pp*cp*dp = {p.tp}*{p.pp}*{p.cp}*{p.dp} = {replica * p.dp}, but there are {world_size} "
                f"ranks; start {replica * p.dp} ranks"
                + (f" or write parallel.dp={world_size // replica}." if world_size % replica == 0 else ".")
            )
        return p.dp
    if world_size % replica:
        raise ConfigError(
            f"parallel.tp*pp*cp = {p.tp}*{p.pp}*{p.cp} = {replica} does not divide the {world_size} ranks; start a "
            f"multiple of {replica} ranks or change parallel.tp or parallel.pp."
        )
    return world_size // replica


# -- single fields -------------------------------------------------------------------------------------------


def _get(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _check_names(config: Config) -> None:
    registries = {f"model.{registry.trait}": tuple(registry.names()) for registry in _REGISTRIES}
    for key, names in (_NAMES | registries).items():
        if _get(config, key) not in names:
            raise ConfigError(f"{key}={_get(config, key)} is unknown.{did_you_mean(str(_get(config, key)), names)}")


def _check_ranges(config: Config) -> None:
    for key, least in _AT_LEAST.items():
        value = _get(config, key)
        if value is not None and not least <= value < math.inf:  # nan is not either
            wrong = "out of range" if value == math.inf else "too small"
            raise ConfigError(f"{key}={value} is {wrong}; write {least} or more.")
    for key, most in _AT_MOST.items():
        value = _get(config, key)
        if value is not None and value > most:
            raise ConfigError(f"{key}={value:g} is too large; write {most:g} or less.")
    for key in _ABOVE_ZERO:
        value = _get(config, key)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{key}={value} is out of range; write a number above 0.")
    for key in _SHARES:
        value = _get(config, key)
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{key}={value} is out of range; write a number from 0 up to below 1.")


# -- model ---------------------------------------------------------------------------------------------------


def _check_heads(config: Config) -> None:
    m = config.model
    if m.head_dim is None and m.hidden % m.heads:
        raise ConfigError(
            f"model.heads={m.heads} does not divide model.hidden={m.hidden}; write "
            f"{_nearest('model.heads', m.heads, _divisors(m.hidden))} or set model.head_dim."
        )
    if m.kv_heads is not None and m.heads % m.kv_heads:
        raise ConfigError(
            f"model.kv_heads={m.kv_heads} does not divide model.heads={m.heads}; write "
            f"{_nearest('model.kv_heads', m.kv_heads, _divisors(m.heads))}."
        )
    check_traits(m)


def _check_sequence(config: Config) -> None:
    m, d = config.model, config.data
    if m.positions in ("learned", "learned_2d") and d.seq_len > m.max_positions:
        raise ConfigError(
            f"data.seq_len={d.seq_len} is more than model.max_positions={m.max_positions} learned positions; write "
            f"data.seq_len={m.max_positions} or model.max_positions={d.seq_len}."
        )
    if d.position_reset and not d.document_mask:
        raise ConfigError(
            "data.position_reset=true needs data.document_mask=true: without the mask, tokens of several documents "
            "would see each other at equal positions; write data.document_mask=true."
        )


# -- layout --------------------------------------------------------------------------------------------------


def _check_tensor_parallel(config: Config) -> None:
    m, d, p = config.model, config.data, config.parallel
    if p.cp != 1:
        raise ConfigError(f"parallel.cp={p.cp}: context parallelism is not available; write parallel.cp=1.")
    for key, value in (("model.heads", m.heads), ("model.ffn", m.ffn)):
        if value % p.tp:
            raise ConfigError(
                f"parallel.tp={p.tp} does not divide {key}={value}; write "
                f"{_nearest('parallel.tp', p.tp, _divisors(math.gcd(m.heads, m.ffn)))}."
            )
    kv_heads = m.kv_heads or m.heads
    if kv_heads % p.tp and p.tp % kv_heads:
        fitting = [tp for tp in _divisors(math.gcd(m.heads, m.ffn)) if kv_heads % tp == 0 or tp % kv_heads == 0]
        raise ConfigError(
            f"parallel.tp={p.tp} neither divides model.kv_heads={kv_heads} nor is a multiple of it; write "
            f"{_nearest('parallel.tp', p.tp, fitting)}."
        )
    if p.sequence_parallel and d.seq_len % p.tp:
        raise ConfigError(
            f"parallel.sequence_parallel=true needs parallel.tp={p.tp} to divide data.seq_len={d.seq_len}; write "
            f"data.seq_len={_round_up(d.seq_len, p.tp)} or parallel.sequence_parallel=false."
        )


def _check_pipeline(config: Config) -> None:
    m, p = config.model, config.parallel
    build(p.schedule, p.pp, 1, p.virtual_stages)  # raises for an unknown name or a wrong number of chunks
    if p.virtual_stages > 1 and p.pp == 1:
        raise ConfigError(
            f"parallel.virtual_stages={p.virtual_stages} needs parallel.pp of 2 or more; with parallel.pp=1 write "
            "parallel.virtual_stages=1 parallel.schedule=1f1b."
        )
    split_layers(m.layers, p.pp * p.virtual_stages, p.stage_layers)  # raises when the layers cannot be split so


def _check_batches(config: Config, dp: int) -> None:
    t = config.train
    unit = dp * t.micro_batch
    for size in _batch_sizes(config):
        if size % unit:
            where = "train.global_batch" if size == t.global_batch else f"train.ramp={_plain(t.ramp)} passes through"
            write = f"train.global_batch={_round_up(size, unit)}" if size == t.global_batch else "multiples of it"
            raise ConfigError(
                f"{where}{'=' if size == t.global_batch else ' '}{size}, which is not a multiple of dp * "
                f"train.micro_batch = {dp}*{t.micro_batch} = {unit}; write {write} or a smaller train.micro_batch."
            )


def _batch_sizes(config: Config) -> Iterable[int]:
    t = config.train
    if not t.ramp or len(t.ramp) != 3 or t.ramp[1] < 1:
        return [t.global_batch]
    return [t.global_batch, *range(t.ramp[0], t.global_batch, t.ramp[1])]


def _check_ramp(config: Config) -> None:
    t = config.train
    if not t.ramp:
        return
    if len(t.ramp) != 3 or min(t.ramp) < 1:
        raise ConfigError(
            f"train.ramp={_plain(t.ramp)} must be three numbers above 0, [first batch,increment,samples]; write "
            f"train.ramp=[{t.global_batch},{t.micro_batch},10000] with a smaller first batch."
        )
    first, increment, _ = t.ramp
    if first > t.global_batch or (t.global_batch - first) % increment:
        raise ConfigError(
            f"train.ramp={_plain(t.ramp)} does not lead to train.global_batch={t.global_batch}: it starts at {first} "
            f"and grows by {increment}; write an increment that divides train.global_batch - {first}."
        )


# -- data, optimizer, precision, run ---------------------------------------------------------------------------


_MOST_SAMPLES = 1 << 48


def _check_data(config: Config) -> None:
    d = config.data
    if not d.paths and d.format not in ("auto", "builtin"):
        raise ConfigError(
            f"data.format={d.format} needs data.paths, which is empty; write data.paths=[FILE,...] or data=builtin."
        )
    if d.paths and d.format == "builtin":
        raise ConfigError(
            "data.paths is not used by data.format=builtin; write data=text, data=jsonl, data=megatron or "
            "data.format=auto."
        )
    if len(d.split) != 3 or not all(0 <= share < math.inf for share in d.split) or d.split[0] <= 0:
        raise ConfigError(
            f"data.split={d.split} must be the shares of train, valid and test, the first above 0; write "
            "data.split=[969,30,1]."
        )
    read_valid_sets(d.valid)
    for piece in d.skip:
        if not (isinstance(piece, list) and len(piece) == 2 and all(type(end) is int for end in piece)):
            raise ConfigError(f"data.skip: {piece!r} is not a range; write data.skip=[[FIRST,STOP],...] in samples.")
        if piece[1] > _MOST_SAMPLES:
            raise ConfigError(f"data.skip: {piece[1]} is more than any run has; write at most {_MOST_SAMPLES}.")
        if not 0 <= piece[0] < piece[1]:
            raise ConfigError(
                f"data.skip: [{piece[0]},{piece[1]}] holds no samples; write the first "
                "one, then one more than the last."
            )


def _check_optim(config: Config) -> None:
    o, steps = config.optim, config.train.steps
    if o.min_lr > o.lr:
        raise ConfigError(f"optim.min_lr={o.min_lr:g} is above optim.lr={o.lr:g}; write optim.min_lr={o.lr / 10:g}.")
    if o.warmup_steps >= steps and o.warmup_steps > 0:
        raise ConfigError(
            f"optim.warmup_steps={o.warmup_steps} leaves nothing of train.steps={steps}; write "
            f"optim.warmup_steps={steps // 10} or more train.steps."
        )
    if o.decay_steps is not None and o.decay_steps <= o.warmup_steps:
        raise ConfigError(
            f"optim.decay_steps={o.decay_steps} is not after optim.warmup_steps={o.warmup_steps}; write "
            f"optim.decay_steps={steps}."
        )
    if o.restart_steps is not None and o.restart_steps <= o.warmup_steps:
        raise ConfigError(
            f"optim.restart_steps={o.restart_steps} is not after optim.warmup_steps={o.warmup_steps}; write "
            f"optim.restart_steps={max(2 * o.warmup_steps, steps // 2)}, or null."
        )
    if not 0 < o.wsd_decay_fraction <= 1:
        raise ConfigError(
            f"optim.wsd_decay_fraction={o.wsd_decay_fraction:g} is out of range; write a number above 0 and up to 1."
        )
    for key, value in (("clip_memory", o.clip_memory), ("clip_warmup", o.clip_warmup)):
        if value is not None and o.clip_mode == "global":
            raise ConfigError(
                f"optim.{key}={value:g} is not used by optim.clip_mode=global, which remembers nothing; write "
                f"optim.clip_mode=zclip or optim.clip_mode=adagc, or optim.{key}=null."
            )


def _check_precision(config: Config) -> None:
    c = config.precision
    if c.dtype != "fp16":
        return
    for key, value in (("loss_scale", c.loss_scale), ("min_loss_scale", c.min_loss_scale)):
        if math.frexp(value)[0] != 0.5:
            power = 2.0 ** round(math.log2(value))
            raise ConfigError(
                f"precision.{key}={value:g} would round gradients when precision.dtype=fp16: it must be a power of "
                f"two; write precision.{key}={power:g}."
            )
    if c.min_loss_scale > c.loss_scale:
        raise ConfigError(
            f"precision.min_loss_scale={c.min_loss_scale:g} is above precision.loss_scale={c.loss_scale:g}; write "
            "precision.min_loss_scale=1."
        )


def _check_ops(config: Config) -> None:
    m, o = config.model, config.ops
    on_gpu = config.run.device != "cpu" and torch.cuda.is_available()
    backend.check(o.backend, o.overrides, "cuda" if on_gpu else "cpu", DTYPES[config.precision.dtype])
    named = o.overrides.get("attention", "auto")
    why = [part for part in written_out(m) if not (named == "flash" and "softcap" in part)]
    if named not in ("auto", "reference") and why:
        raise ConfigError(
            f"ops.overrides.attention={named} does not know what {why[0]} asks for; write ops.overrides.attention=auto."
        )
    dim = m.head_dim or m.hidden // m.heads
    for op in ("attention", "rope"):
        if o.overrides.get(op) == "flash" and dim > LARGEST_HEAD:
            raise ConfigError(
                f"ops.overrides.{op}=flash takes heads of up to {LARGEST_HEAD} dimensions, but they have {dim} "
                f"(model.head_dim, or model.hidden / model.heads); write ops.overrides.{op}=auto."
            )


def _check_checkpoint(config: Config) -> None:
    for key in config.checkpoint.accept_changes:
        if key not in ACCEPTABLE:
            raise ConfigError(
                f"checkpoint.accept_changes names {key}, which is no change that can be accepted."
                f"{did_you_mean(key, ACCEPTABLE)}"
            )


def _check_run(config: Config) -> None:
    factor = config.monitor.straggler_factor
    if 0 < factor <= 1:
        raise ConfigError(
            f"monitor.straggler_factor={factor:g} would call every rank slow; write monitor.straggler_factor=2, or 0 "
            "to judge none."
        )
    profiled_steps(config.profile.steps, config.train.steps)
    parts = config.run.name.split("/")
    if not all(parts) or ".." in parts or "." in parts:
        raise ConfigError(
            f"run.name={config.run.name!r} is not a folder below run.root={config.run.root}; write run.name=my-run."
        )


# -- wording -------------------------------------------------------------------------------------------------


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest(key: str, wrong: int, fitting: list[int]) -> str:
    """Return ``key=value`` for the fitting values on both sides of the wrong one."""
    below = [n for n in fitting if n < wrong][-1:]
    above = [n for n in fitting if n > wrong][:1]
    return " or ".join(f"{key}={n}" for n in below + above)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _plain(values: list[int] | None) -> str:
    return "[" + ",".join(map(str, values or [])) + "]"
