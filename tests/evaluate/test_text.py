"""Log-likelihoods and continuations of text equal those of a plain forward pass over all of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.data.samples import Sample
from engine.errors import ConfigError
from engine.evaluate.forward import TokenScores
from engine.evaluate.text import Continuing, TextModel, windows
from engine.generate import generate, load_model, logits
from engine.interchange.saved import SavedModel
from tests.interchange.saved_runs import CONTEXT, MODELS, VOCAB, save_run, small_tokenizer

LONG = "the sea, the wind and the ship " * 12


class Plain:
    """Scores windows one by one in this process."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        found = []
        for sample in samples:
            assert len(sample.window) <= CONTEXT + 1
            tokens = torch.from_numpy(sample.window)
            with torch.no_grad():
                rows = logits(self.model, tokens[None, :-1])[0]
            losses = torch.nn.functional.cross_entropy(rows, tokens[1:], reduction="none")
            found.append(TokenScores(losses.numpy(), (rows.argmax(-1) == tokens[1:]).numpy()))
        return found

    def next_logits(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        with torch.no_grad():
            return [logits(self.model, torch.tensor([list(prompt)]))[0, -1] for prompt in prompts]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, MODELS["llama"], dtype=torch.float64, tokenizer=small_tokenizer())
    chunk = load_model(SavedModel.open(folder), torch.device("cpu"), torch.float64)
    return TextModel(Plain(chunk), small_tokenizer(), CONTEXT, VOCAB)


def whole(model: TextModel, tokens: list[int], first: int) -> float:
    """log p(tokens[first:] | tokens before them), from one forward pass over all that is in view."""
    seen = torch.tensor(tokens)
    with torch.no_grad():
        rows = logits(model.scorer.model, seen[None, :-1])[0].log_softmax(-1)  # type: ignore[attr-defined]
    return sum(rows[place - 1, seen[place]].item() for place in range(first, len(tokens)))


def test_windows_predict_each_token_once_with_all_the_context_there_is() -> None:
    assert list(windows(10, 1, 20)) == [(0, 1, 10)]
    assert list(windows(11, 1, 4)) == [(0, 1, 5), (4, 5, 9), (6, 9, 11)]
    assert list(windows(30, 27, 8)) == [(21, 27, 30)]


def test_continuations_are_conditioned_on_their_contexts(model: TextModel) -> None:
    encode, eod = model.tokenizer.encode, model.tokenizer.eod
    pairs = [("the sea,", " the wind"), ("", "the ship"), ("the ", "sea"), (LONG, " and")]
    found = model.continuations(pairs)
    wanted = [
        (encode("the sea, the wind"), len(encode("the sea,"))),
        ([eod, *encode("the ship")], 1),
        (encode("the sea"), len(encode("the"))),
        (encode(LONG + " and")[-CONTEXT - 1 :], 0),
    ]
    count = len(encode(LONG + " and")) - len(encode(LONG.rstrip()))
    wanted[3] = (wanted[3][0], CONTEXT + 1 - count)
    assert [total for total, _ in found] == pytest.approx([whole(model, *span) for span in wanted], rel=1e-12)


def test_documents_longer_than_the_context_are_predicted_whole(model: TextModel) -> None:
    short, long = model.documents(["the sea", LONG])
    tokens = [model.tokenizer.eod, *model.tokenizer.encode(LONG)]
    assert short == pytest.approx(whole(model, [tokens[0], *model.tokenizer.encode("the sea")], 1), rel=1e-12)
    parts = [whole(model, tokens[b:s], f - b) for b, f, s in windows(len(tokens), 1, CONTEXT)]
    assert len(parts) > 1
    assert long == pytest.approx(sum(parts), rel=1e-12)


def test_generation_stops_where_it_should(model: TextModel) -> None:
    prompt = model.tokenizer.encode("the sea")
    tokens = list(generate(model.scorer.model, prompt, 12, context=CONTEXT, temperature=0.0, top_k=0, seed=0,  # type: ignore[attr-defined]
                           vocab=model.vocab, stop=model.tokenizer.eod))  # fmt: skip
    text = model.tokenizer.decode([*prompt, *tokens])[len("the sea") :]
    stop = text[len(text) // 2]
    found = model.generate(
        ["the sea", "the sea", LONG, ""], [Continuing(12), Continuing(12, (stop,)), Continuing(2), Continuing(0)]
    )
    assert found[0] == text
    assert found[1] == text[: text.index(stop)]
    assert found[3] == ""


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our adapter on lm_eval, or where that is not installed on what it promises its models."""
    try:
        import lm_eval.api.model  # noqa: F401
    except ImportError:

        class LM:
            def __init__(self) -> None:
                self.cache_hook = SimpleNamespace(add_partial=lambda *parts: None)

        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lm_eval.api.model"].LM = LM  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "engine.evaluate.harness", raising=False)
    import engine.evaluate.harness

    yield engine.evaluate.harness
    sys.modules.pop("engine.evaluate.harness", None)


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_the_harness_gets_what_the_text_model_says(model: TextModel, harness: Any) -> None:
    adapter = harness.HarnessModel(model)
    assert adapter.loglikelihood([asked("the sea,", " the")]) == model.continuations([("the sea,", " the")])
    assert adapter.loglikelihood_rolling([asked("the sea")]) == model.documents(["the sea"])
    options = {"until": "x", "max_gen_toks": 3, "do_sample": False, "temperature": 0.7}
    assert adapter.generate_until([asked("the", options)]) == model.generate(["the"], [Continuing(3, ("x",))])
    with pytest.raises(ConfigError, match="num_beams=4, which is not available"):
        adapter.generate_until([asked("the", {"num_beams": 4})])


def test_a_task_of_a_local_file_runs(model: TextModel, harness: Any, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="lm-evaluation-harness is not installed")
    pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed")
    (tmp_path / "sea.jsonl").write_text('{"start": "the sea, the", "end": " wind"}\n{"start": "the", "end": " ship"}\n')
    (tmp_path / "sea.yaml").write_text(TASK.format(file=tmp_path / "sea.jsonl"))
    found = harness.run_tasks(model, tmp_path / "sea.yaml")
    pairs = model.continuations([("the sea, the", " wind"), ("the", " ship")])
    assert found["sea"]["acc"] == sum(greedy for _, greedy in pairs) / 2
    mean = torch.tensor([total for total, _ in pairs], dtype=torch.float64).mean()
    assert found["sea"]["perplexity"] == pytest.approx(torch.exp(-mean).item(), rel=1e-10)
    assert harness.run_tasks(model, tmp_path)["sea"]["acc"] == found["sea"]["acc"]


TASK = """\
task: sea
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{start}}}}"
doc_to_target: "{{{{end}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: perplexity
"""
