"""The page: whole, well-formed, small, and nothing from a run's files runs in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from engine.monitor.report.page import render
from engine.monitor.report.read import read_run
from engine.stability.actions import ROLLBACK, STOP, Action
from engine.stability.ledger import Ledger
from tests.monitor.records import step_values
from tests.monitor.report.fake_run import config, decide, run_folder, write

EVIL = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\"><!--"
PANELS = {"charts", "pipeline", "step-time", "profile", "data", "ledger", "checkpoints", "environment", "config"}
VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """Checks that elements nest, and collects them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))  # <path .../> inside SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    def all(self, attribute: str) -> set[str | None]:
        return {attributes[attribute] for _, attributes in self.elements if attribute in attributes}

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page_of(*folders: Path) -> Page:
    return Page(render([read_run(folder) for folder in folders], 1.79e9))


def test_a_whole_run(tmp_path: Path) -> None:
    page = page_of(run_folder(tmp_path / "voyage", 300))
    assert page.all("data-panel") == PANELS
    assert page.all("data-chart") == {
        "loss",
        "grad_norm",
        "param_norm",
        "lr",
        "tokens_per_s",
        "mfu_percent",
        "step_time_s",
        "memory_gib",
    }
    [run] = page.data["runs"]
    assert run["curves"]["loss"]["x"] == list(range(1, 301))
    assert len(run["curves"]["valid_loss"]["y"]) == 25
    assert [branch["loss"]["x"][-1] for branch in run["abandoned"]] == [140, 215]
    assert [event["back_to"] for event in run["events"] if event["kind"] == "rollback"] == [123, 198]
    assert 139 in run["skipped"]
    assert run["axes"]["tokens"][-1] == 300 * 4096
    for words in ("finished 300 steps", "web/*.jsonl", "at most 4 in flight", "loss 0.9 nats above normal", "H100",
                  "parallel.tp", "98 GB", "rollback", "pending"):  # fmt: skip
        assert words in page.text, words
    assert "15.8% of the stages' time is bubble as planned" in " ".join(page.text.split())
    assert "not recorded" not in page.text
    assert "cannot be" not in page.text


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(run_folder(tmp_path / "voyage", 100))
    assert not {tag for tag, _ in page.elements} & {"link", "iframe", "object", "embed", "base", "img"}
    assert not page.all("src") | page.all("href") | page.all("srcset")
    style = "".join(page.words[: page.words.index(next(word for word in page.words if "color-scheme" in word)) + 1])
    assert "url(" not in style
    assert "@import" not in style
    [policy] = [value for value in page.all("content") if value and "default-src" in value]
    assert re.fullmatch(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-[A-Za-z0-9+/=]+'", policy)


def test_a_long_run_makes_a_small_page_that_keeps_its_extremes(tmp_path: Path) -> None:
    rows = [{"step": step, **step_values(loss=3.0 + (step % 7) / 100)} for step in range(1, 12_001)]
    rows[7_221]["loss"], rows[3_110]["grad_norm"], rows[5]["loss"] = 9.5, 77.0, None
    write(tmp_path / "metrics.jsonl", rows)
    page = render([read_run(tmp_path)], 0.0)
    assert len(page) < 1_000_000
    curves = Page(page).data["runs"][0]["curves"]
    assert max(value for value in curves["loss"]["y"] if value is not None) == 9.5
    assert None in curves["loss"]["y"]
    assert max(curves["grad_norm"]["y"]) == 77.0
    assert len(curves["loss"]["x"]) <= 3 * 1200 + 2


def test_what_is_recorded_now_and_then_is_one_line(tmp_path: Path) -> None:
    rows = [
        {"step": step, **step_values(), **({"gpu_power_w": 600.0} if step % 3 == 0 else {})} for step in range(1, 8)
    ]
    rows[4]["grad_norm"] = None
    write(tmp_path / "metrics.jsonl", rows)
    curves = page_of(tmp_path).data["runs"][0]["curves"]
    assert curves["gpu_power_w"] == {"x": [3, 6], "y": [600.0, 600.0]}
    assert curves["grad_norm"]["y"] == [1.25] * 4 + [None] + [1.25] * 2


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    """A run's name, configuration, metrics, ledger and machine, all with markup in them."""
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    plain = config(100, run={"name": EVIL}, data={"paths": [[0.5, EVIL], [0.5, "b"]]}, model={"name": EVIL})
    run_folder(folder, 100, plain)
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("commit", {"intent": ledger.chain.records[-1].seq})
    decide(ledger, Action(STOP, 99, EVIL, EVIL, 98))
    ledger.append("note", {EVIL: EVIL})
    ledger.close()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write(folder / "metrics.jsonl", [*rows, {"step": 101, EVIL: 3.0, "constructor": 1.0, **step_values()}])
    write(folder / "starts.jsonl", [{"step": 0, "config": plain, "environment": {EVIL: EVIL}, "ranks": EVIL}])
    for page in (page_of(folder), page_of(folder, run_folder(tmp_path / "other", 100))):
        assert [tag for tag, _ in page.elements].count("script") == 2
        assert "img" not in {tag for tag, _ in page.elements}
        assert not {name for _, attributes in page.elements for name in attributes if name.startswith("on")}
        assert EVIL in page.text
        assert EVIL in page.data["runs"][0]["curves"]


def test_missing_pieces_are_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    page = page_of(tmp_path)
    assert page.all("data-panel") == PANELS - {"profile"}
    for words in ("no training step is recorded: metrics.jsonl is empty", "the configuration is unknown",
                  "not recorded", "nothing was decided", "none recorded", "starts.jsonl is missing"):  # fmt: skip
        assert words in page.text, words
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    page = page_of(tmp_path)
    assert "metrics.jsonl: 1 line is damaged or cut off and left out" in page.text
    assert "2.5000" in page.text


def test_settings_that_make_no_sense_are_told(tmp_path: Path) -> None:
    """A configuration of another version, or edited: the page says what it cannot show."""
    write(tmp_path / "metrics.jsonl", [{"step": 1, **step_values()}])
    odd: list[dict[str, Any]] = [
        {"parallel": {"pp": 4}}, {"parallel": 3, "data": 4},
        {"parallel": {"pp": 2, "schedule": "x"}, "model": {"layers": 0}},
        {"data": {"paths": [3, None]}, "train": {"steps": "many", "micro_batch": 0}, "parallel": {"pp": []}},
    ]  # fmt: skip
    for settings in odd:
        write(tmp_path / "starts.jsonl", [{"step": 0, "config": settings}])
        assert page_of(tmp_path).all("data-panel") == PANELS - {"profile"}


def test_runs_side_by_side(tmp_path: Path) -> None:
    folders = [
        run_folder(
            tmp_path / f"lr{lr}", 100, config(100, optim={"lr": lr}, run={"name": f"lr{lr}"}), seed=int(1e5 * lr)
        )
        for lr in (3e-4, 1e-3)
    ]
    page = page_of(*folders)
    assert {"runs", "charts", "differences", "each"} <= page.all("data-panel")
    assert [run["name"] for run in page.data["runs"]] == ["lr0.0003", "lr0.001"]
    assert "optim.lr" in page.text
    assert "optim.beta1" not in page.text
    assert "run.name" not in page.text


def test_a_run_that_stopped_itself_says_so(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [{"step": step, **step_values()} for step in range(1, 8)])
    ledger = Ledger(tmp_path / "ledger.jsonl")
    decide(ledger, Action(ROLLBACK, 6, "spike", "bad", 5, 2))
    decide(ledger, Action(STOP, 6, "spike", "write a lower optim.lr", 5))
    ledger.close()
    assert "stopped itself at step 7" in page_of(tmp_path).text


def test_validation_sets_share_charts(tmp_path: Path) -> None:
    rows = [{"step": step, **step_values(loss=3.0)} for step in range(1, 5)]
    sets = {
        "valid/books/loss": 2.5,
        "valid/books/perplexity": 12.2,
        "valid/books/bits_per_byte": 0.8,
        "valid/x/loss": 2.0,
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "metrics.jsonl", [*rows, {"step": 4, **sets, "valid_time_s": 1.0}])
    page = page_of(tmp_path / "one")
    keys = {chart["name"]: chart["keys"] for chart in page.data["charts"]}
    assert keys["sets_loss_0"] == ["valid/books/loss", "valid/x/loss"]
    assert keys["sets_bits_per_byte_0"] == ["valid/books/bits_per_byte"]
    assert page.data["runs"][0]["curves"]["valid/books/loss"] == {"x": [4], "y": [2.5]}
    both = {chart["name"]: chart["keys"] for chart in page_of(tmp_path / "one", tmp_path / "two").data["charts"]}
    assert (both["sets_loss_0"], both["sets_loss_1"]) == (["valid/books/loss"], ["valid/x/loss"])


def test_a_profile_is_shown_where_there_is_one(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "voyage", 100)
    page = " ".join(page_of(folder).text.split())
    assert "steps 10 to 11, all ranks" in page
    assert "bubble 11.9%" in page
    (folder / "profile" / "summary.json").write_text('{"first": 1, "last": 2, "seconds": [1], "parts": []}')
    assert "the summary cannot be read" in page_of(folder).text
    (folder / "profile" / "summary.json").unlink()
    assert "profile" not in page_of(folder).all("data-panel")
