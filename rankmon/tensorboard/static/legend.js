// The legend below a chart: a button for each line, with its look and its value under the pointer.

import { element } from "./dom.js";
import { interval } from "./bounds.js";
import { shortened } from "./names.js";
import { rich } from "./richtext.js";
import { shown } from "./values.js";

const [WIDTH, HEIGHT] = [40, 14]; // two dashes, one of which no circle hides
const SVG = "http://www.w3.org/2000/svg";

/** Returns whether a line has an entry of its own; bands, and theory of a line, belong to its entry. */
export const isEntry = (line) => line.partOf === undefined && line.kind !== "silent" && line.kind !== "edge";

/** Returns the indices of the lines of an entry: its own, its band and its theory. */
export function linesOf(lines, entry) {
  return lines.map((_, at) => at).filter((at) => at === entry || lines[at].partOf === entry);
}

/** Returns the index of the last logged value; null stands for a value that is not finite. */
function lastOf(values) {
  for (let at = values.length - 1; at >= 0; at--) if (values[at] !== undefined) return at;
  return 0;
}

export class Legend {
  /** @param {(entry: number) => void} onToggle is called with the index of a line */
  constructor(onToggle) {
    this.onToggle = onToggle;
    this.list = element("ul");
    this.where = element("p", { class: "where" });
    this.key = element("p", { class: "key" });
    this.host = element("div", { class: "legend" }, this.where, element("div", { class: "entries" }, this.list, this.key));
    this.rows = new Map();
  }

  /**
   * Shows the entries of a chart.
   * @param {import("./chart.js").Spec} spec
   * @param {(at: number) => boolean} isShown
   */
  show(spec, isShown) {
    const focused = [...this.rows].find(([, { button }]) => button === document.activeElement)?.[0];
    this.spec = spec;
    this.rows = new Map();
    this.order = "";
    spec.lines.forEach((line, at) => {
      if (isEntry(line)) this.rows.set(at, this.row(line, at, isShown(at)));
    });
    this.list.replaceChildren(...[...this.rows.values()].map(({ item }) => item));
    this.rows.get(focused)?.button.focus();
    this.key.replaceChildren(...meanings(spec));
    this.host.hidden = this.rows.size === 0;
  }

  row(line, at, isShown) {
    // Beside the button, so that it can be selected and copied.
    const value = element("span", { class: "value" });
    const toggle = () => this.onToggle(at);
    const attributes = { type: "button", class: "entry", "aria-pressed": String(isShown), onclick: toggle };
    const label = element("span", { class: "name", title: line.help ? `${line.label}: ${line.help}` : line.label }, ...rich(shortened(line.short ?? line.label)));
    const button = element("button", attributes, swatch(this.spec, at), label);
    return { item: element("li", {}, button, value), button, value };
  }

  /** Shows the values at an index of the chart's data: under the pointer, or else each line's last one. */
  read(data, at, isPointed) {
    const xs = data[0];
    if (!this.spec || !xs.length) return;
    const x = this.spec.x ?? "step";
    const hasLast = x !== "index"; // the end of a spectrum says nothing
    this.where.textContent = isPointed ? `${x} ${shown(xs[at])}` : hasLast ? `last ${x}` : "";
    const indices = new Map([...this.rows.keys()].map((entry) => [entry, isPointed ? at : lastOf(data[entry + 1])]));
    for (const [entry, { value }] of this.rows) {
      value.textContent = isPointed || hasLast ? this.valueOf(data, entry, indices.get(entry)) : "";
    }
    if (this.spec.many) this.sort(data, indices);
  }

  /** Returns a line's value with its theory and its margin, where there are such. */
  valueOf(data, entry, index) {
    const { lines } = this.spec;
    const at = (place) => data[place + 1]?.[index];
    const line = lines[entry];
    const [low, high] = (line.bounds ?? []).map(at);
    const isBounded = Number.isFinite(low) && Number.isFinite(high);
    const own = at(entry);
    if (!Number.isFinite(own) && isBounded) return interval(low, high);
    const notes = lines.flatMap((one, place) => {
      const expected = at(place);
      const isNote = one.partOf === entry && one.meaning && Number.isFinite(expected);
      return isNote ? [`${one.meaning} ${shown(expected)}`] : [];
    });
    if (isBounded && low !== high) notes.push(interval(low, high));
    return notes.length ? `${shown(own)} (${notes.join("; ")})` : shown(own);
  }

  /** Returns names and values as a sentence, for those who cannot see the chart. */
  words() {
    const values = [...this.rows].map(([at, { value }]) => `${this.spec.lines[at].label} ${value.textContent}`);
    return `${this.where.textContent}: ${values.join(", ")}`;
  }

  /** Sorts the entries by value, the largest first, as the lines lie above each other. */
  sort(data, indices) {
    const valueOf = (entry) => data[entry + 1]?.[indices.get(entry)] ?? -Infinity;
    const sorted = [...this.rows.keys()].sort((a, b) => valueOf(b) - valueOf(a) || a - b);
    const order = sorted.join();
    if (order === this.order) return;
    this.order = order;
    this.list.append(...sorted.map((entry) => this.rows.get(entry).item));
  }

  mark(entry, isShown) {
    this.rows.get(entry)?.button.setAttribute("aria-pressed", String(isShown));
  }
}

/** Returns what circles, dashes and bands mean that have no entry of their own, each with a picture. */
function meanings({ lines, bands, band }) {
  const color = "var(--muted)";
  const found = new Map();
  for (const { meaning, kind, dash } of lines) {
    if (!meaning || found.has(meaning)) continue;
    const isCircle = kind === "markers";
    found.set(meaning, isCircle ? { kind, color } : { color, dash, width: 1.5 });
  }
  const keys = [...found].map(([meaning, line]) => key(picture({ line, circled: line.kind && line }), meaning));
  const isBanded = (bands ?? []).some(([high, low]) => isWide(lines[high].values, lines[low].values));
  if (band && isBanded) keys.push(key(picture({ line: { kind: "markers" }, ground: "var(--grid)" }), band));
  return keys;
}

const key = (drawing, words) => element("span", {}, drawing, words);
const isWide = (highs, lows) => highs.some((high, at) => high > lows[at]);

/** Returns a small picture of a line: its band, dash, and the circle of its theory. */
function swatch(spec, at) {
  const { lines } = spec;
  const line = lines[at];
  const band = (spec.bands ?? []).find(([high]) => lines[high].partOf === at);
  const circled = line.kind === "markers" ? line : lines.find(({ partOf, kind }) => partOf === at && kind === "markers");
  return picture({ line, ground: spec.ground ?? band?.[2], circled });
}

function picture({ line, ground, circled }) {
  const middle = HEIGHT / 2;
  const made = (tag, attributes) => {
    const one = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
    return one;
  };
  const svg = made("svg", { width: WIDTH, height: HEIGHT, "aria-hidden": "true", class: "swatch" });
  if (ground) svg.append(made("rect", { x: 0, y: 2, width: WIDTH, height: HEIGHT - 4, fill: ground }));
  const thick = Math.min(line.width ?? 2, 4);
  const look = { stroke: line.color, "stroke-width": thick, "stroke-dasharray": (line.dash ?? []).join(" ") };
  if (line.kind !== "markers") svg.append(made("line", { x1: 0, x2: WIDTH, y1: middle, y2: middle, ...look }));
  if (circled) {
    const circle = { cx: WIDTH / 2, cy: middle, r: 3.5, fill: circled.fill ?? "var(--page)", stroke: circled.color };
    svg.append(made("circle", { ...circle, "stroke-width": 1.4 }));
  }
  return svg;
}
