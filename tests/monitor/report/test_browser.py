"""The page in a real browser: it draws, complains of nothing, and answers hands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.monitor.report.page import render
from engine.monitor.report.read import read_run
from tests.monitor.report.fake_run import config, run_folder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

# Looks at sizes, then hovers, zooms, switches axes, scales, curves and colours; every answer ends up in the page.
PROBE = """
const told = {}, box = (node) => node.getBoundingClientRect();
told.panels = Object.fromEntries([...document.querySelectorAll("[data-panel], [data-chart]")].map((node) =>
  [node.dataset.panel || node.dataset.chart, [box(node).width, box(node).height]]));
told.empty = [...document.querySelectorAll(".plot svg")].filter((svg) => !svg.querySelector("path.curve[d^=M]")).length;
told.wide = document.documentElement.scrollWidth > innerWidth;
const surface = () => document.querySelector("[data-chart=loss] .surface");
const send = (kind, share) => surface().dispatchEvent(new PointerEvent(kind,
  { pointerId: 1, clientX: box(surface()).left + share * box(surface()).width, clientY: box(surface()).top + 50 }));
SVGElement.prototype.setPointerCapture = () => {};  // there is no real pointer to capture
send("pointermove", 0.5);
told.tip = document.querySelector("[data-chart=loss] .tip").textContent;
told.cursors = document.querySelectorAll(".cursor").length;
send("pointerdown", 0.4); send("pointermove", 0.6); send("pointerup", 0.6);
told.zoom = view.zoom;
told.reset = !document.getElementById("reset").hidden;
document.getElementById("reset").click();
told.unzoomed = view.zoom === null;
document.querySelector("[data-axis=tokens]").click();
told.axis = document.querySelector("[data-chart=loss] .axis .name").textContent;
const linear = document.querySelector("[data-chart=lr] path.curve").getAttribute("d");
document.querySelector("[data-chart=lr] [data-do=log]").click();
told.log = linear !== document.querySelector("[data-chart=lr] path.curve").getAttribute("d");
const curves = () => document.querySelectorAll("[data-chart=loss] path.curve").length, before = curves();
document.querySelector("[data-chart=loss] .legend button").click();
told.hidden = before - curves();
const ground = getComputedStyle(document.body).backgroundColor;
document.getElementById("scheme").click();
told.scheme = ground !== getComputedStyle(document.body).backgroundColor;
const field = document.querySelector("[data-filter]");
field.value = "optim.lr"; field.dispatchEvent(new Event("input"));
told.pairs = [...document.querySelectorAll(".groups .pair:not([hidden])")].map((pair) => pair.textContent);
document.title = "probed";
document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: JSON.stringify(told) }));
"""


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """Return the page's elements after its scripts have run, and what was written to the console."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900",
         f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_page_as_it_is(tmp_path: Path) -> None:
    """Its own policy lets its script run, and nothing is refused or reported."""
    page = tmp_path / "report.html"
    page.write_text(render([read_run(run_folder(tmp_path / "run", 200))], 0.0))
    elements, console = browse(page, tmp_path / "profile")
    assert console == ""
    widths = [float(width) for width in re.findall(r'<div class="plot"><svg width="([\d.]+)"', elements)]
    assert len(widths) == 8
    assert min(widths) > 300


def test_reading_off_zooming_and_switching(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / "run", 200)]
    told, console = probe(tmp_path, folders)
    assert console == ""
    assert len(told["panels"]) == 17
    assert all(width > 100 and height > 40 for width, height in told["panels"].values()), told["panels"]
    assert (told["empty"], told["wide"]) == (0, False)
    assert re.search(r"^step 1\d\d", told["tip"])
    assert "train" in told["tip"]
    assert told["cursors"] == 8
    assert told["zoom"] == pytest.approx([0.4 * 199 + 1, 0.6 * 199 + 1], abs=1)
    assert told["reset"]
    assert told["unzoomed"]
    assert told["axis"] == "tokens"
    assert told["log"]
    assert told["hidden"] == 2  # both abandoned branches
    assert told["scheme"]
    assert told["pairs"] == ["optim.lr0.0003"]


def test_a_comparison_draws_every_run(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, 100, config(100, train={"seed": seed})) for seed, name in enumerate("ab")]
    page = tmp_path / "report.html"
    page.write_text(render([read_run(folder) for folder in folders], 0.0))
    elements, console = browse(page, tmp_path / "profile")
    assert console == ""
    figure = elements[elements.index('data-chart="grad_norm"') :].partition("</figure>")[0]
    assert {"curve s0", "curve s1"} <= set(re.findall(r'<path class="([^"]+)"', figure))


def probe(tmp_path: Path, folders: list[Path]) -> tuple[Any, str]:
    """Run PROBE in the page, whose policy would refuse it and is taken away."""
    page = render([read_run(folder) for folder in folders], 0.0)
    page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert count == 1
    path = tmp_path / "probed.html"
    path.write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"))
    elements, console = browse(path, tmp_path / "profile")
    found = re.search(r'<pre id="told">(.*?)</pre>', elements, re.DOTALL)
    assert found is not None, console
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console
