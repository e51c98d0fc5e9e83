"""The table of models and the page of each."""

from __future__ import annotations

import pytest

from launch.models import main
from tests.launch.test_settings import compose


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys).splitlines()
    assert lines[0].split() == ["model", "family", "parameters", "active", "published", "traits", "source"]
    row = next(line for line in lines if line.startswith("gpt-neox-20b "))
    for part in (
        "20.55B",
        "20B",
        "parallel_two_norms layernorm, rope 25%, gelu_tanh, MHA, biases, untied",
        "arXiv 2204.06745",
    ):
        assert part in row
    row = next(line for line in lines if line.startswith("llama-tiny "))
    assert "pre_norm rmsnorm, rope, swiglu, MHA, tied" in row


def test_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "gpt3-175b")
    for part in ("GPT-3 175B (2020)", "arXiv 2005.14165", "width of the band", "174,604,259,328", "617,558,016",
                 "MHA window 256 every 2 layers", "model.attention_window=256", "a token of training"):  # fmt: skip
        assert part in page


def test_page_of_a_small_version(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "palm-540b-tiny")
    assert "MQA" in page
    assert "with 4,096 tokens" in page
    model = compose("model=palm-540b-tiny").model
    assert (model.hidden, model.kv_heads, model.head_dim, model.block) == (256, 1, 40, "parallel")


def test_unknown_names_are_answered_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bloom-176"]) == 2
    assert capsys.readouterr().err == "trimaran: there is no model called 'bloom-176'. Did you mean 'bloom-176b'?\n"
