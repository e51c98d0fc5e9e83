"""Objectives on every kind of layout: prefixes, documents and blanks reach each stage, shard and replica."""

from __future__ import annotations

from typing import Any

import pytest

from tests.layouts import GPT, LLAMA, make_config, train_oracle
from tests.parallel.test_parity import STEPS, check

GLM_2D: dict[str, Any] = {**GPT, "positions": "learned_2d"}
MASKED: dict[str, Any] = {"model": GPT, "objective": {"name": "masked"}}
SPANS: dict[str, Any] = {"model": LLAMA, "objective": {"name": "span_corruption"}, "data": {"document_mask": True}}
GLM: dict[str, Any] = {"model": GLM_2D, "objective": {"name": "glm", "block_positions": True, "endings": 0.4}}

TP_SP = {"tp": 2, "sequence_parallel": True}
INTERLEAVED = {"pp": 2, "schedule": "interleaved", "virtual_stages": 2, "recompute": "full"}
CASES: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("masked-dp2", MASKED, 2, {}),
    ("spans-pp2", SPANS, 2, INTERLEAVED),
    ("glm-tp2sp", GLM, 2, {**TP_SP, "recompute": "selective"}),
]


def config_of(groups: dict[str, Any], parallel: dict[str, Any]) -> Any:
    return make_config(**{**groups, "data": {"seq_len": 24, **groups.get("data", {})}, "parallel": parallel})


@pytest.mark.parametrize(("groups", "world", "parallel"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_layout_equals_the_plain_model(groups: dict[str, Any], world: int, parallel: dict[str, Any]) -> None:
    check(config_of(groups, parallel), world, 1e-10)


@pytest.mark.parametrize("groups", [SPANS, GLM], ids=["spans", "glm"])
def test_what_an_objective_says_matters(groups: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain model ends elsewhere without any one part of the batch: the comparison is not of what is ignored."""
    from tests import layouts

    whole = train_oracle(config_of(groups, {}), STEPS)["weights"]["embedding.weight"]
    full = layouts.make_batch(config_of(groups, {}), 0)
    optional = {"positions_bs", "documents_bs", "prefix_bs", "blocks_bs"} & set(full)
    assert len(optional) == (4 if groups is GLM else 2)
    original = layouts.make_batch
    for left_out in optional:

        def without(*args: Any, left_out: str = left_out, **kwargs: Any) -> dict[str, Any]:
            return {name: rows for name, rows in original(*args, **kwargs).items() if name != left_out}

        monkeypatch.setattr(layouts, "make_batch", without)
        weights = train_oracle(config_of(groups, {}), STEPS)["weights"]["embedding.weight"]
        assert (weights - whole).norm() > 1e-6 * whole.norm(), left_out
