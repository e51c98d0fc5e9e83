// One chart: curves of all runs over a shared horizontal axis, drawn as SVG from the page's data.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const DATA = JSON.parse(document.getElementById("data").textContent);
const view = { axis: "step", smooth: 0, zoom: null, hidden: new Set(), charts: [] };
const AXES = { step: "step", tokens: "tokens", hours: "hours in steps" };
const names = (table) => Object.assign(Object.create(null), table); // without the names every object has
const NAMES = names({ loss: "train", valid_loss: "validation", step_time_s: "whole step", data_time_s: "waiting for data", compute_time_s: "computing", communication_time_s: "communicating", bubble_time_s: "pipeline bubble", optimizer_time_s: "optimizer" });

function make(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

function element(name, className, parent, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

// -- numbers ---------------------------------------------------------------------------------------------

function said(value) {
  if (value === null || value === undefined || !isFinite(value)) return "not finite";
  const size = Math.abs(value);
  for (const [unit, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit && size >= 1e4) return trim((value / unit).toPrecision(4)) + prefix;
  if (size >= 1000) return whole(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return trim(value.toPrecision(4));
}
function saidTick(tick, high) { // all ticks of an axis in the unit of its end
  for (const [unit, prefix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (tick !== 0 && high >= unit && high >= 1e4) return trim((tick / unit).toPrecision(6)) + prefix;
  return said(tick);
}
const trim = (digits) => (digits.includes(".") && !digits.includes("e") ? digits.replace(/\.?0+$/, "") : digits);
const whole = (value) => Math.round(value).toLocaleString("en-US");
const place = (value) => (view.axis === "step" ? whole(value) : said(value));

function linearTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count), size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => size * factor >= rough * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) ticks.push(at * step);
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks(low, high, count);
  const factors = decades < 2.5 ? [1, 2, 5] : [1], skip = Math.max(1, Math.ceil(decades / Math.max(2, count)));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (power % skip === 0 && tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  return ticks;
}

function bisect(sorted, value) { // first place whose value is not below `value`
  let low = 0, high = sorted.length;
  while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; }
  return low;
}

function onAxis(run, steps) { // steps -> places on the chosen axis, between the run's knots in a straight line
  const from = run.axes.step, to = run.axes[view.axis];
  if (view.axis === "step") return steps;
  return steps.map((step) => {
    const at = Math.min(Math.max(1, bisect(from, step)), from.length - 1);
    if (from.length < 2) return to[0];
    const share = (step - from[at - 1]) / (from[at] - from[at - 1]);
    return to[at - 1] + share * (to[at] - to[at - 1]);
  });
}

function smoothed(values) { // exponential average, unbiased at its start, over the drawn points
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = view.smooth * mean + (1 - view.smooth) * value;
    weight = view.smooth * weight + (1 - view.smooth);
    return mean / weight;
  });
}

// -- a chart ---------------------------------------------------------------------------------------------

class Chart {
  constructor(spec, figure) {
    Object.assign(this, { spec, figure, log: spec.log, clip: false });
    this.plot = figure.querySelector(".plot");
    this.legend = figure.querySelector(".legend");
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    for (const button of figure.querySelectorAll(".buttons button"))
      button.addEventListener("click", () => {
        this[button.dataset.do] = !this[button.dataset.do];
        button.setAttribute("aria-pressed", this[button.dataset.do]);
        this.draw();
      });
  }

  // Every curve: {run, key, label, x, y, colour, kind}; abandoned branches come first, to lie below the others.
  curves() {
    const found = [], several = DATA.runs.length > 1;
    DATA.runs.forEach((run, number) => {
      this.spec.keys.forEach((key, place) => {
        const colour = several ? number % 8 : place % 8, dashed = several && place > 0;
        const label = [several ? run.name : "", this.spec.keys.length > 1 || key.startsWith("valid/") ? NAMES[key] || key.replace(/^valid\/(.+)\/.*$/, "$1") : ""];
        const base = { run, key, colour, dashed, label: label.filter(Boolean).join(", "), toggle: several ? `${number}` : key };
        if (this.spec.marked && place === 0)
          for (const branch of run.abandoned)
            if (Object.hasOwn(branch, key)) found.unshift({ ...base, kind: "left", raw: branch[key], toggle: "left", label: several ? `${run.name}, abandoned` : "abandoned" });
        if (Object.hasOwn(run.curves, key)) found.push({ ...base, kind: /^valid[_/]/.test(key) ? "dots" : "line", raw: run.curves[key] });
      });
    });
    return found.map((curve) => ({ ...curve, x: onAxis(curve.run, curve.raw.x), y: curve.raw.y }));
  }

  draw() {
    this.width = Math.max(240, this.plot.clientWidth);
    this.height = this.spec.wide ? 360 : 210;
    this.box = { left: 58, right: this.width - 14, top: 14, bottom: this.height - 34 };
    this.all = this.curves();
    this.shown = this.all.filter((curve) => !view.hidden.has(curve.toggle));
    this.xs = view.zoom || span;
    this.ys = this.range();
    this.svg = make("svg", { width: this.width, height: this.height, role: "img", "aria-label": this.spec.title });
    const id = `in-${this.spec.name}`, inside = make("clipPath", { id }, make("defs", {}, this.svg));
    make("rect", { x: this.box.left, y: this.box.top - 4, width: this.box.right - this.box.left,
      height: this.box.bottom - this.box.top + 8 }, inside);
    this.back = make("g", { "clip-path": `url(#${id})` }, this.svg);
    this.grid();
    const front = make("g", { "clip-path": `url(#${id})` }, this.svg);
    for (const curve of this.shown) this.curve(curve, front);
    if (this.spec.marked) this.marks(front);
    this.cursor = make("g", {}, this.svg);
    this.plot.replaceChildren(this.svg, this.tip);
    this.writeLegend();
    listen(this);
  }

  px(value) {
    const { left, right } = this.box, [low, high] = this.xs;
    return left + ((value - low) / (high - low || 1)) * (right - left);
  }

  py(value) {
    const { top, bottom } = this.box, [low, high] = this.ys;
    const share = this.isLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return bottom - share * (bottom - top);
  }

  range() { // of the values in view; `clip` leaves out the outer percents
    const values = [];
    for (const curve of this.shown) {
      const first = Math.max(0, bisect(curve.x, this.xs[0]) - 1), last = bisect(curve.x, this.xs[1]) + 1;
      for (let at = first; at < Math.min(last, curve.y.length); at++) if (curve.y[at] !== null) values.push(curve.y[at]);
    }
    values.sort((a, b) => a - b);
    const outer = this.clip ? Math.floor(values.length * 0.01) : 0;
    let [low, high] = values.length ? [values[outer], values[values.length - 1 - outer]] : [0, 1];
    this.isLog = this.log && values.some((value) => value > 0);
    if (this.isLog) {
      low = low > 0 ? low : values.find((value) => value > 0);
      const room = (high / low) ** 0.06;
      return high > low ? [low / room, high * room] : [low / 2, high * 2];
    }
    if (this.spec.zero && low >= 0) return [0, high * 1.08 || 1];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return [low - room, high + room];
  }

  grid() {
    const { left, right, top, bottom } = this.box, axis = make("g", { class: "axis" }, this.svg);
    const ticks = (this.isLog ? logTicks : linearTicks)(...this.ys, (bottom - top) / 38);
    for (const tick of ticks) {
      const y = this.py(tick);
      if (y < top - 2 || y > bottom + 2) continue;
      make("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }, axis);
      make("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, axis, this.isLog ? said(tick) : saidTick(tick, this.ys[1]));
    }
    make("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }, axis);
    for (const tick of linearTicks(...this.xs, (right - left) / 90)) {
      const x = this.px(tick), word = saidTick(tick, this.xs[1]);
      make("line", { class: "base", x1: x, x2: x, y1: bottom, y2: bottom + 4 }, axis);
      if (x < right - 70) make("text", { x, y: bottom + 18, "text-anchor": "middle" }, axis, word);
    }
    make("text", { x: right, y: bottom + 18, "text-anchor": "end", class: "name" }, axis, AXES[view.axis]);
  }

  path(xs, ys) {
    const first = Math.max(0, bisect(xs, this.xs[0]) - 1), last = Math.min(xs.length, bisect(xs, this.xs[1]) + 1);
    let path = "", pen = "M";
    for (let at = first; at < last; at++) {
      if (ys[at] === null || (this.isLog && ys[at] <= 0)) { pen = "M"; continue; }
      path += `${pen}${this.px(xs[at]).toFixed(1)} ${Math.min(9999, Math.max(-9999, this.py(ys[at]))).toFixed(1)}`;
      pen = "L";
    }
    return path;
  }

  curve(curve, parent) {
    const kind = `curve ${colourOf(curve)}${curve.kind === "left" ? " branch" : ""}${curve.dashed ? " dashed" : ""}`;
    const line = (ys, more) => make("path", { class: kind + more, d: this.path(curve.x, ys) }, parent);
    if (curve.kind === "line" && view.smooth > 0) { line(curve.y, " faint"); line(smoothed(curve.y), ""); return; }
    line(curve.y, "");
    const alone = curve.y.length === 1, few = curve.y.length <= 80 && curve.kind === "dots";
    if (alone || few)
      curve.x.forEach((x, at) => {
        if (curve.y[at] !== null && x >= this.xs[0] && x <= this.xs[1])
          make("circle", { class: `dot ${kind}`, cx: this.px(x), cy: this.py(curve.y[at]), r: 3.2 }, parent);
      });
  }

  marks(front) { // rollbacks as shaded stretches, other events as lines, skipped updates and checkpoints as ticks
    const { top, bottom } = this.box;
    for (const run of DATA.runs) {
      for (const event of run.events) {
        const x = this.px(onAxis(run, [event.step])[0]), kind = `event ${event.kind}`;
        if (event.back_to !== undefined && DATA.runs.length === 1) {
          const from = this.px(onAxis(run, [event.back_to])[0]);
          make("rect", { class: `${kind} area`, x: from, y: top, width: Math.max(1, x - from), height: bottom - top }, this.back);
        }
        make("line", { class: kind, x1: x, x2: x, y1: top, y2: bottom }, this.back);
        make("circle", { class: `${kind} head`, cx: x, cy: top, r: 3.5 }, front);
        if (this.spec.wide && DATA.runs.length === 1) this.words(event, x, front);
      }
      const tick = (step, kind, size) => {
        const x = this.px(onAxis(run, [step])[0]);
        if (x >= this.box.left && x <= this.box.right)
          make("path", { class: kind, d: `M${x} ${bottom - size}l${size / 2} ${size}h${-size}z` }, front);
      };
      if (!view.hidden.has("skipped")) for (const step of run.skipped) tick(step, "skip", 8);
    }
  }

  words(event, x, parent) { // beside the event's line, where the next event leaves room
    const next = DATA.runs[0].events.map((other) => this.px(onAxis(DATA.runs[0], [other.step])[0])).filter((end) => end > x);
    const word = event.back_to === undefined ? EVENTS[event.kind] || event.kind : `back to ${whole(event.back_to)}`;
    if (Math.min(this.box.right, ...next) - x > 12 + 6.5 * word.length)
      make("text", { class: `event word ${event.kind}`, x: x + 7, y: this.box.top + 4 }, parent, word);
  }

  writeLegend(at) {
    const seen = new Set(), several = DATA.runs.length > 1;
    this.legend.replaceChildren();
    for (const curve of this.all) {
      if (seen.has(curve.toggle)) continue;
      seen.add(curve.toggle);
      const label = curve.kind === "left" ? "abandoned" : several ? curve.run.name : curve.label;
      const item = this.legendItem(curve.toggle, curve.kind === "left" ? "left" : colourOf(curve), label);
      if (curve.kind !== "left" && !view.hidden.has(curve.toggle)) {
        const index = at === undefined ? lastNumber(curve.y) : nearest(curve.x, at);
        if (index >= 0) element("b", "", item, said(curve.y[index]));
      }
    }
    if (several && this.spec.keys.length > 1)
      element("span", "key", this.legend, `dashed: ${NAMES[this.spec.keys[1]] || this.spec.keys[1]}`);
    if (!this.spec.marked) return;
    if (DATA.runs.some((run) => run.skipped.length)) this.legendItem("skipped", "skip", "update skipped");
    for (const kind of new Set(DATA.runs.flatMap((run) => run.events.map((event) => event.kind))))
      element("span", "key", this.legend, EVENTS[kind] || kind).prepend(element("i", `event ${kind}`));
  }

  legendItem(toggle, colour, label) {
    const item = element("button", "key", this.legend);
    item.type = "button";
    item.setAttribute("aria-pressed", !view.hidden.has(toggle));
    element("i", colour, item);
    element("span", "", item, label);
    item.addEventListener("click", () => {
      if (!view.hidden.delete(toggle)) view.hidden.add(toggle);
      for (const chart of view.charts) chart.draw();
    });
    return item;
  }
}

const EVENTS = names({ rollback: "rollback", lower: "rate lowered", stop: "stop", start: "started again", again: "went back" });
const colourOf = (curve) => (curve.kind === "left" && DATA.runs.length === 1 ? "left" : `s${curve.colour}`);
const lastNumber = (values) => { let at = values.length - 1; while (at >= 0 && values[at] === null) at--; return at; };

function nearest(xs, value) {
  const at = bisect(xs, value);
  if (at === 0 || at === xs.length) return Math.min(at, xs.length - 1);
  return value - xs[at - 1] < xs[at] - value ? at - 1 : at;
}
