"""The central promise: the layout is a detail. Loss, gradient norm and weights equal a plain model's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.layouts import GPT, LLAMA, assemble, make_config, train_layout, train_oracle
from tests.ranks import run_ranks

STEPS = 3
TIED_LLAMA = {**LLAMA, "tied_embeddings": True, "hidden_dropout": 0.1}
UNTIED_GPT = {**GPT, "tied_embeddings": False}
DEEP_LLAMA = {**LLAMA, "layers": 8}
DRY_GPT = {**GPT, "hidden_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}

# A covering set: every pair of values of tp, pp, dp, sequence parallelism, schedule, recomputation, tying, dropout
# and model appears at least once, on at most 8 ranks (`test_every_pair_is_covered`).
# Columns: model, tp, pp, dp, sequence parallelism, schedule, chunks, recomputation.
LAYOUTS: list[tuple[str, dict[str, Any], int, int, int, bool, str, int, str]] = [
    ("llama", LLAMA, 1, 1, 1, False, "1f1b", 1, "none"),
    ("gpt", GPT, 1, 1, 1, False, "gpipe", 1, "full"),
    ("llama", LLAMA, 2, 1, 1, False, "1f1b", 1, "selective"),
    ("llama", TIED_LLAMA, 2, 1, 1, True, "1f1b", 1, "none"),
    ("gpt", GPT, 2, 1, 1, True, "1f1b", 1, "full"),
    ("gpt", GPT, 2, 1, 2, False, "gpipe", 1, "none"),
    ("llama", LLAMA, 4, 1, 1, True, "1f1b", 1, "none"),  # kv heads shared by pairs of ranks
    ("llama", TIED_LLAMA, 4, 1, 2, False, "1f1b", 1, "full"),
    ("gpt", UNTIED_GPT, 4, 2, 1, True, "1f1b", 1, "selective"),
    ("llama", LLAMA, 1, 2, 1, False, "gpipe", 1, "none"),
    ("llama", TIED_LLAMA, 1, 2, 1, False, "1f1b", 1, "none"),
    ("gpt", GPT, 1, 2, 2, False, "1f1b", 1, "selective"),
    ("gpt", GPT, 1, 2, 1, False, "interleaved", 2, "none"),
    ("llama", TIED_LLAMA, 2, 2, 1, True, "interleaved", 2, "full"),
    ("llama", LLAMA, 2, 2, 2, True, "1f1b", 1, "selective"),
    ("gpt", GPT, 2, 2, 2, True, "interleaved", 2, "none"),
    ("llama", TIED_LLAMA, 1, 4, 1, False, "1f1b", 1, "none"),
    ("gpt", UNTIED_GPT, 1, 4, 2, False, "gpipe", 1, "full"),
    ("gpt", GPT, 2, 4, 1, True, "1f1b", 1, "none"),
    ("llama", LLAMA, 2, 4, 1, False, "1f1b", 1, "full"),
    ("llama", LLAMA, 1, 1, 2, False, "1f1b", 1, "none"),
    ("llama", LLAMA, 1, 1, 4, False, "1f1b", 1, "none"),
    ("llama", DEEP_LLAMA, 2, 4, 1, True, "interleaved", 2, "selective"),
    ("gpt", DRY_GPT, 4, 2, 1, True, "gpipe", 1, "selective"),
    ("llama", LLAMA, 4, 2, 1, False, "interleaved", 2, "none"),
]


def _name(case: tuple[Any, ...]) -> str:
    name, model, tp, pp, dp, sp, schedule, chunks, recompute = case
    tied = "tied" if model["tied_embeddings"] else "untied"
    return f"{name}-{tied}-tp{tp}{'sp' if sp else ''}-pp{pp}-dp{dp}-{schedule}{chunks}-{recompute}"


def check(config: Any, world: int, tolerance: float, masked: bool = False) -> None:
    compare(config, run_ranks(world, train_layout, config, STEPS, masked), tolerance, masked)


def compare(config: Any, results: list[dict[str, Any]], tolerance: float, masked: bool, steps: int = STEPS) -> None:
    """Hold what the ranks say of a training to the plain model's."""
    expected = train_oracle(config, steps, masked)
    for result in results:  # every rank reports the same global numbers
        assert result["losses"] == pytest.approx(expected["losses"], rel=tolerance)
        assert result["norms"] == pytest.approx(expected["norms"], rel=tolerance)
    weights = assemble(results)
    assert weights.keys() == expected["weights"].keys()
    for name, weight in weights.items():
        # relative, with a floor of 1 for biases near zero: a key bias has no effect, so its gradient is pure rounding
        error = (weight - expected["weights"][name]).norm() / (1 + expected["weights"][name].norm())
        assert error <= tolerance, f"{name}: {error:.2e}"


def test_every_pair_is_covered() -> None:
    names = ("tp", "pp", "dp", "sp", "schedule", "recompute", "tied", "dropout", "model")
    rows = [
        (tp, pp, min(dp, 2), sp, schedule, recompute, model["tied_embeddings"], "hidden_dropout" in model
         and model["hidden_dropout"] > 0, name)
        for name, model, tp, pp, dp, sp, schedule, _, recompute in LAYOUTS
    ]  # fmt: skip
    impossible = {
        ("tp", 4, "pp", 4),  # 16 ranks
        ("tp", 1, "sp", True),  # nothing to shard the sequence over
        ("pp", 1, "schedule", "interleaved"),  # needs two stages
    }
    values = [sorted({row[column] for row in rows}, key=str) for column in range(len(names))]
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        wanted = {(a, b) for a in values[i] for b in values[j] if (one, a, other, b) not in impossible}
        assert wanted <= {(row[i], row[j]) for row in rows}, f"{one} x {other}"


@pytest.mark.parametrize("case", LAYOUTS, ids=_name)
def test_layout_equals_the_plain_model_in_float64(case: tuple[Any, ...]) -> None:
    _, model, tp, pp, dp, sp, schedule, chunks, recompute = case
    config = make_config(
        model=model,
        parallel={
            "tp": tp, "pp": pp, "sequence_parallel": sp, "schedule": schedule,
            "virtual_stages": chunks, "recompute": recompute,
        },
    )  # fmt: skip
    check(config, tp * pp * dp, 1e-10)


def test_uneven_stages_and_masked_tokens() -> None:
    """Micro-batches with different numbers of tokens are where dividing in the wrong place shows."""
    config = make_config(parallel={"pp": 2, "stage_layers": [3, 1]}, train={"micro_batch": 1})
    check(config, 4, 1e-10, masked=True)


@pytest.mark.parametrize(("pp", "dp"), [(1, 1), (2, 2)])
def test_tables_that_do_not_decay(pp: int, dp: int) -> None:
    config = make_config(
        model=GPT, optim={"decay_embeddings": False, "weight_decay": 3.0}, parallel={"pp": pp, "tp": 2}
    )
    check(config, 2 * pp * dp, 1e-10)


@pytest.mark.parametrize("model", [LLAMA, GPT], ids=["llama", "gpt"])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"tp": 2, "sequence_parallel": True}),
        (4, {"pp": 2, "schedule": "interleaved", "virtual_stages": 2, "recompute": "full"}),
    ],
    ids=["tp2sp", "pp2-dp2"],
)
def test_document_masks_and_position_reset(model: dict[str, Any], world: int, parallel: dict[str, Any]) -> None:
    """Together with masked tokens: what a batch says of its documents reaches every stage and replica."""
    config = make_config(model=model, data={"document_mask": True}, parallel=parallel)
    check(config, world, 1e-10, masked=True)


def test_float32_layout_is_within_rounding() -> None:
    config = make_config(model=GPT, precision={"dtype": "fp32"}, parallel={"tp": 2, "pp": 2}, optim={"eps": 1e-4})
    check(config, 4, 1e-5)


PREVENTION: dict[str, Any] = {
    "model": {**GPT, "kv_heads": 1, "qk_norm": True, "embedding_norm": True, "embedding_grad": 0.1},
    "optim": {"lr": 1e-2, "clip": 0.5, "clip_mode": "adagc", "clip_warmup": 1, "clip_relative": 1.0,
              "update_clip": 0.9, "max_update_ratio": 0.006, "beta2_schedule": "palm"},
    "train": {"z_loss": 1e-2},
}  # fmt: skip


def test_prevention_of_spikes() -> None:
    """All of it that knows of tensors or of the whole update, at once; both ranks of tp hold the one kv head."""
    layout = {"tp": 2, "pp": 2, "sequence_parallel": True, "schedule": "interleaved", "virtual_stages": 2}
    parallel = {**layout, "recompute": "full"}
    check(make_config(**PREVENTION, parallel=parallel), 8, 1e-10, masked=True)


def test_every_prevention_matters_here() -> None:
    """Without any one of them the same steps end elsewhere: the comparison above is not of things that never act."""
    whole = train_oracle(make_config(**PREVENTION), STEPS, masked=True)["weights"]["embedding.weight"]
    off = [("model", "qk_norm", False), ("model", "embedding_norm", False), ("model", "embedding_grad", 1.0),
           ("optim", "clip_relative", 1e9), ("optim", "update_clip", 0.0), ("optim", "max_update_ratio", 0.0),
           ("optim", "beta2_schedule", "constant"), ("train", "z_loss", 0.0)]  # fmt: skip
    for group, field, value in off:
        one_less = {**PREVENTION, group: {**PREVENTION[group], field: value}}
        weights = train_oracle(make_config(**one_less), STEPS, masked=True)["weights"]["embedding.weight"]
        assert (weights - whole).norm() > 1e-6 * whole.norm(), field


def test_oracle_is_sensitive() -> None:
    """The comparison itself can fail: a changed seed, mask or clipping moves loss and norm far beyond tolerance."""
    config = make_config()
    one = train_oracle(config, 2)
    other = train_oracle(make_config(train={"seed": 8}), 2)
    assert abs(one["losses"][0] / other["losses"][0] - 1) > 1e-6
    assert torch.isfinite(torch.tensor(one["norms"])).all()


@pytest.mark.parametrize("model", [LLAMA, GPT], ids=["llama", "gpt"])
def test_curves_with_and_without_kernels_agree(model: dict[str, Any]) -> None:
    """20 steps in float32: losses and norms differ by rounding, and differ at all, since other code made them."""
    told = {}
    for name in ("auto", "reference"):
        config = make_config(
            model=model, precision={"dtype": "fp32"}, parallel={"tp": 2}, ops={"backend": name}, optim={"eps": 1e-4}
        )
        told[name] = run_ranks(2, train_layout, config, 20)[0]
    for what in ("losses", "norms"):
        assert told["auto"][what] == pytest.approx(told["reference"][what], rel=1e-5)
    assert told["auto"]["norms"] != told["reference"]["norms"]
