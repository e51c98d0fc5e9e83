"""What a map between our models and a Hugging Face architecture consists of.

A `Family` is data: which traits the architecture fixes (`traits`), which values both configurations carry
(`fields`), which of its own switches must be left as they are (`constants`), and where every tensor of ours lies
in its files (`links`). The functions here interpret that data in both directions. Nothing is dropped silently:
a value one side cannot express is a ConfigError that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from engine.config import ModelConfig
from engine.errors import ConfigError

HEAD = "lm_head.weight"

# They shape training, not the function that the weights compute: a family that lacks one may leave it out.
TRAINING_ONLY = frozenset(
    {"name", "vocab_multiple", "init", "init_std", "output_init", "hidden_dropout", "attention_dropout",
     "embedding_dropout", "embedding_grad"}
)  # fmt: skip

# Keys of any config.json that do not change what the network computes.
INERT = frozenset(
    {
        "architectures", "model_type", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class", "return_dict", "torchscript",
        "output_attentions", "output_hidden_states", "_attn_implementation_autoset", "gradient_checkpointing",
        "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
        "is_decoder", "is_encoder_decoder", "chunk_size_feed_forward", "do_sample", "max_length", "temperature",
        "top_k", "top_p",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A value that both sides have: `theirs` in config.json, and every ModelConfig field in `ours`.

    `default` is what the architecture takes when the key is absent or null; `names` translates values from theirs
    to ours (the first of several names for one value is the one written).
    """

    theirs: str
    ours: tuple[str, ...]
    kind: type
    default: Any = None
    names: dict[str, str] | None = None


@dataclass(frozen=True)
class Link:
    """Where a tensor of ours lies: range `part[0]` of `part[1]` equal ranges of rows of `theirs`.

    `transposed`: theirs is stored [in, out], ours is [out, in]. `{}` in the names stands for the layer.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of their tensor when ours has `shape`."""
        whole = (shape[0] * self.part[1], *shape[1:])
        return whole[::-1] if self.transposed else whole

    def take(self, theirs: Any, shape: tuple[int, ...]) -> Tensor:
        """Return our tensor of `shape` out of theirs: a tensor, or a safetensors slice of which only it is read."""
        rows = slice(self.part[0] * shape[0], (self.part[0] + 1) * shape[0])
        return theirs[:, rows].t() if self.transposed else theirs[rows]

    def put(self, theirs: Tensor, ours: Tensor) -> None:
        """Copy our tensor to its place in theirs."""
        rows = slice(self.part[0] * ours.shape[0], (self.part[0] + 1) * ours.shape[0])
        (theirs.t() if self.transposed else theirs)[rows].copy_(ours)


@dataclass(frozen=True)
class Family:
    """One Hugging Face architecture.

    `settle` rewrites a config.json to the keys that `fields` and `constants` name (older spellings, values that
    depend on others) or raises ConfigError. `limits` names what of an otherwise fitting ModelConfig the
    architecture cannot express. `prefix`: published files may omit it from tensor names. `inert`: keys of
    config.json, and `buffers`: tensor names (a pattern) that do not belong to the function the model computes.
    """

    architecture: str
    model_type: str
    traits: dict[str, Any]
    fields: tuple[Field, ...]
    links: tuple[Link, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    settle: Callable[[dict[str, Any]], dict[str, Any]] = dict
    limits: Callable[[ModelConfig], list[str]] = lambda config: []
    prefix: str = ""
    inert: frozenset[str] = frozenset()
    buffers: str = "$^"

    def link(self, name: str) -> Link:
        """Return where our tensor `name` lies, with the layer filled in."""
        layer = re.match(r"layers\.(\d+)\.", name)
        pattern = re.sub(r"^layers\.\d+\.", "layers.{}.", name)
        for link in self.links:
            if link.ours == pattern:
                theirs = link.theirs.format(layer[1]) if layer else link.theirs
                return replace(link, ours=name, theirs=theirs)
        raise ConfigError(f"{self.architecture} has no place for the tensor {name}.")

    def full_names(self, names: Iterable[str]) -> dict[str, str]:
        """Return the stored name of each tensor by its full name."""
        names = list(names)
        if any(name.startswith(self.prefix) for name in names):
            return {name: name for name in names}
        return {name if name == HEAD else self.prefix + name: name for name in names}


def canonical(config: ModelConfig) -> ModelConfig:
    """Return the same model with every value that says nothing set to its default."""
    kv_heads = None if config.kv_heads == config.heads else config.kv_heads
    head_dim = (
        None if config.head_dim is not None and config.head_dim * config.heads == config.hidden else config.head_dim
    )
    theta = config.rope_theta if config.positions == "rope" else ModelConfig.rope_theta
    return replace(config, kv_heads=kv_heads, head_dim=head_dim, rope_theta=theta)


def config_from(family: Family, plain: dict[str, Any], name: str) -> ModelConfig:
    """Return the ModelConfig called `name` of a config.json; ConfigError names what we cannot represent."""
    plain = family.settle({key: value for key, value in plain.items() if value is not None})
    known = {*(f.theirs for f in family.fields), *family.constants, *INERT, *family.inert}
    for key, value in plain.items():
        if key not in known:
            raise ConfigError(
                f"config.json has {key}={_short(value)}, which we cannot represent in {family.architecture}; remove "
                "the key if it does not change what the model computes."
            )
        if key in family.constants and value != family.constants[key]:
            raise ConfigError(
                f"config.json has {key}={_short(value)}; of {family.architecture} we can represent only "
                f"{key}={_short(family.constants[key])}."
            )
    values: dict[str, Any] = {**family.traits, "name": name}
    for item in family.fields:
        value = _read(item, plain.get(item.theirs, item.default), family)
        values.update(dict.fromkeys(item.ours, value))
    _check_heads(family, values)
    return canonical(ModelConfig(**values))


def _check_heads(family: Family, values: dict[str, Any]) -> None:
    theirs = {name: item.theirs for item in family.fields for name in item.ours}
    hidden, heads, kv_heads, dim = (values[name] for name in ("hidden", "heads", "kv_heads", "head_dim"))
    for part, name, whole, of in (
        (heads, "heads", hidden if dim is None else heads, "hidden"),
        (kv_heads or heads, "kv_heads", heads, "heads"),
    ):
        if whole % part:
            raise ConfigError(f"config.json has {theirs[name]}={part}, which does not divide {theirs[of]}={whole}.")


def _read(item: Field, value: Any, family: Family) -> Any:
    """Return a value of config.json as ours, checked for its type and sign."""
    if value is None:
        return None
    if item.kind is float and type(value) is int:
        value = float(value)
    if type(value) is not item.kind or (type(value) is int and value < 1):
        raise ConfigError(f"config.json has {item.theirs}={value!r:.60}, which is no {_KINDS[item.kind]}.")
    if item.names is None:
        return value
    if value not in item.names:
        raise ConfigError(
            f"config.json has {item.theirs}={_short(value)}; of {family.architecture} we can represent only "
            f"{', '.join(item.names)}."
        )
    return item.names[value]


_KINDS = {int: "count", float: "number", bool: "true or false", str: "name"}


def config_to(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a model that `mismatches` finds nothing wrong with."""
    explicit = replace(
        canonical(config),
        kv_heads=config.kv_heads or config.heads,
        head_dim=config.head_dim or config.hidden // config.heads,
    )
    plain: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.model_type}
    for item in family.fields:
        value = getattr(explicit, item.ours[0])
        plain[item.theirs] = value if item.names is None else _their_name(item, value)
    return plain | family.constants


def mismatches(family: Family, config: ModelConfig) -> list[str]:
    """Return, in words, every value of `config` that the architecture cannot express."""
    config = canonical(config)
    values = asdict(config)
    found = [
        f"model.{key}={values[key]} (it has {'null' if wanted is None else wanted})"
        for key, wanted in family.traits.items()
        if values[key] != wanted
    ]
    carried = {*family.traits, *TRAINING_ONLY}
    for item in family.fields:
        carried.update(item.ours)
        if len({values[name] for name in item.ours}) > 1:
            found.append(" with ".join(f"model.{name}={values[name]}" for name in item.ours))
        elif item.names is not None and values[item.ours[0]] not in item.names.values():
            found.append(f"model.{item.ours[0]}={values[item.ours[0]]}")
    # A trait added to ModelConfig after this map was written may be exported only while it is off.
    for entry in fields(config):
        default = None if entry.default is MISSING else entry.default
        if entry.name not in carried and values[entry.name] != default:
            found.append(f"model.{entry.name}={values[entry.name]}")
    return found + family.limits(config)


def left_out(family: Family, config: ModelConfig) -> list[str]:
    """Return the dropout rates of `config` that the architecture has no key for."""
    carried = {name for item in family.fields for name in item.ours}
    names = sorted(name for name in TRAINING_ONLY - carried if name.endswith("dropout"))
    return [f"model.{name}={getattr(config, name)}" for name in names if getattr(config, name)]


def _their_name(item: Field, value: Any) -> str:
    assert item.names is not None
    return next(theirs for theirs, ours in item.names.items() if ours == value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
