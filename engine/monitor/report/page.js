// The page around the charts: reading off, zooming, the tool bar, tables, the colour scheme.
"use strict";

let span = [0, 1]; // of the horizontal axis when nothing is zoomed

function measure() {
  const places = DATA.runs.flatMap((run) => {
    const ends = Object.values(run.curves).flatMap((curve) => [curve.x[0], curve.x[curve.x.length - 1]]);
    const branches = run.abandoned.flatMap((branch) => Object.values(branch).map((curve) => curve.x[curve.x.length - 1]));
    return onAxis(run, [...ends, ...branches]);
  });
  span = places.length ? [Math.min(...places), Math.max(...places)] : [0, 1];
  if (span[0] === span[1]) span = [span[0] - 1, span[1] + 1];
}

function drawAll() {
  measure();
  for (const chart of view.charts) chart.draw();
  document.getElementById("reset").hidden = view.zoom === null;
}

// -- reading off and zooming -----------------------------------------------------------------------------

function listen(chart) {
  const { left, right, top, bottom } = chart.box;
  const surface = make("rect", { class: "surface", x: left, y: top, width: right - left, height: bottom - top }, chart.svg);
  const value = (event) => {
    const x = Math.min(right, Math.max(left, event.clientX - chart.svg.getBoundingClientRect().left));
    return chart.xs[0] + ((x - left) / (right - left)) * (chart.xs[1] - chart.xs[0]);
  };
  let from = null, band = null;
  surface.addEventListener("pointerdown", (event) => {
    from = value(event);
    band = make("rect", { class: "band", y: top, height: bottom - top }, chart.svg);
    surface.setPointerCapture(event.pointerId);
  });
  surface.addEventListener("pointermove", (event) => {
    const at = value(event);
    point(at, chart);
    if (from === null) return;
    const [x, end] = [chart.px(Math.min(from, at)), chart.px(Math.max(from, at))];
    band.setAttribute("x", x);
    band.setAttribute("width", end - x);
  });
  surface.addEventListener("pointerup", (event) => {
    const ends = [Math.min(from, value(event)), Math.max(from, value(event))];
    const far = chart.px(ends[1]) - chart.px(ends[0]) > 6;
    from = null;
    band.remove();
    if (far) { view.zoom = ends; unpoint(); drawAll(); }
  });
  surface.addEventListener("pointerleave", unpoint);
  surface.addEventListener("dblclick", resetZoom);
}

function resetZoom() { view.zoom = null; unpoint(); drawAll(); }

function point(at, hovered) {
  for (const chart of view.charts) {
    const x = chart.px(at);
    chart.cursor.replaceChildren();
    make("line", { class: "cursor", x1: x, x2: x, y1: chart.box.top, y2: chart.box.bottom }, chart.cursor);
    for (const curve of chart.shown) {
      const index = curve.kind === "left" ? inside(curve, at) : nearest(curve.x, at), y = curve.y[index];
      if (index < 0 || y === null || y === undefined || (chart.isLog && y <= 0)) continue;
      const cx = chart.px(curve.x[index]), cy = chart.py(y);
      if (cx >= chart.box.left - 1 && cx <= chart.box.right + 1 && cy >= chart.box.top - 6)
        make("circle", { class: `dot curve ${colourOf(curve)}`, cx, cy, r: 3.6 }, chart.cursor);
    }
    if (chart === hovered) tell(chart, at, x); else { chart.tip.hidden = true; chart.writeLegend(at); }
  }
}

const inside = (curve, at) => (at < curve.x[0] || at > curve.x[curve.x.length - 1] ? -1 : nearest(curve.x, at));

function unpoint() {
  for (const chart of view.charts) { chart.cursor.replaceChildren(); chart.tip.hidden = true; chart.writeLegend(); }
}

function tell(chart, at, x) {
  const tip = chart.tip;
  tip.replaceChildren();
  tip.hidden = false;
  element("div", "where", tip, `${AXES[view.axis]} ${place(at)}`);
  for (const curve of chart.shown) {
    const index = curve.kind === "left" ? inside(curve, at) : nearest(curve.x, at);
    if (index < 0) continue;
    const row = element("div", "row", tip);
    element("i", colourOf(curve), row);
    element("span", "", row, (curve.label || chart.spec.title) + (curve.kind === "dots" ? ` at ${place(curve.x[index])}` : ""));
    element("b", "", row, said(curve.y[index]));
  }
  for (const run of DATA.runs)
    for (const event of run.events)
      if (chart.spec.marked && Math.abs(chart.px(onAxis(run, [event.step])[0]) - x) < 7) {
        const note = element("div", "note", tip);
        element("b", `event ${event.kind}`, note, `${whole(event.step)}: ${event.title}`);
        if (event.detail) element("span", "", note, event.detail);
      }
  const room = chart.width - tip.offsetWidth - 8;
  tip.style.left = `${x + 14 > room ? Math.max(4, x - tip.offsetWidth - 14) : x + 14}px`;
  tip.style.top = `${chart.box.top + 4}px`;
}

// -- tool bar, tables, scheme ----------------------------------------------------------------------------

function press(group, chosen) {
  for (const button of group) button.setAttribute("aria-pressed", button === chosen);
}

function toolbar() {
  const axes = document.querySelectorAll("[data-axis]");
  for (const button of axes)
    button.addEventListener("click", () => { view.axis = button.dataset.axis; view.zoom = null; press(axes, button); drawAll(); });
  const smooth = document.getElementById("smooth");
  smooth.addEventListener("input", () => { view.smooth = 1 - (1 - Number(smooth.value)) ** 2; drawAll(); });
  document.getElementById("reset").addEventListener("click", resetZoom);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && view.zoom) resetZoom(); });
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("scheme").addEventListener("click", () => {
    root.dataset.scheme = (root.dataset.scheme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
  });
  for (const button of document.querySelectorAll("[data-go]"))
    button.addEventListener("click", () =>
      document.querySelector(`[data-panel="${button.dataset.go}"]`).scrollIntoView({ behavior: "smooth", block: "start" }));
}

function filters() {
  for (const field of document.querySelectorAll("[data-filter]"))
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase(), panel = field.closest("section");
      for (const pair of panel.querySelectorAll(".pair")) pair.hidden = !pair.textContent.toLowerCase().includes(wanted);
      for (const group of panel.querySelectorAll(".group")) group.hidden = !group.querySelector(".pair:not([hidden])");
    });
}

function sortable() { // a click on a heading sorts the table by that column, another one the other way
  const key = (row, at) => row.cells[at].querySelector("[data-value]")?.dataset.value ?? row.cells[at].textContent;
  const order = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  for (const table of document.querySelectorAll("table.sortable"))
    [...table.tHead.rows[0].cells].forEach((cell, at) =>
      cell.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => order(key(a, at), key(b, at)));
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...(down ? rows.reverse() : rows));
      }));
}

for (const spec of DATA.charts) {
  const figure = document.querySelector(`figure[data-chart="${CSS.escape(spec.name)}"]`);
  if (figure.querySelector(".plot")) view.charts.push(new Chart(spec, figure));
}
toolbar();
filters();
sortable();
drawAll();
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAll, 80); });
