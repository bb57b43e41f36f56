// Charts of quantities over steps: for one run, or for several runs as lines or as median and range.

import { boundsOnly, orBound } from "./bounds.js";
import { overRuns } from "./seeds.js";
import { coinciding, nested } from "./coinciding.js";
import { sameItems } from "./finite.js";
import { counted, unshared } from "./names.js";
import { faint, ink, veil } from "./theme.js";

/**
 * @typedef {{steps: number[], values: ArrayLike<number>}} Series
 * @typedef {{name: string, color: string}} Run
 *
 * @typedef {{name: string, dash: number[], of: (run: string) => Series|undefined}} Reference
 *
 * @typedef {Object} Quantity
 * @property {string} id
 * @property {string} label
 * @property {string} [short] the label in the legend, if the title says it all
 * @property {string} color the quantity's color in charts of one run or of medians
 * @property {(run: string) => Series|undefined} of
 * @property {(run: string) => {low?: Series, high?: Series}} [margin]
 * @property {(run: string) => Series|undefined} [theory]
 * @property {string} [expected] the meaning of `theory`, by default "theory"
 * @property {boolean} [isOld] whether `theory` belongs to another cut than the curve
 * @property {Reference[]} [references] bounds and landmarks, which are no predictions
 * @property {(run: string) => Series|undefined} [marks] points of interest on the line
 * @property {string} [marked] the meaning of these points
 * @property {string} [help] an explanation of the quantity
 * @property {number[]} [dash]
 * @property {number} [width]
 */

/**
 * @param {string} id the chart's id; charts of several runs append the id of a quantity
 * @param {Partial<import("./chart.js").Spec>} look properties that all the charts share, and
 *   `along(run, series)`, which places a series along the horizontal axis
 * @param {Quantity[]} quantities
 * @param {Run[]} runs
 * @param {boolean} asMedian whether to show several runs as median and range, not as lines
 * @returns {[string, import("./chart.js").Spec][]} charts by id
 */
export function evolution(id, look, quantities, runs, asMedian) {
  if (!runs.length) return [];
  if (asMedian && runs.length > 1) return [[id, ofMedians(look, quantities, runs)]];
  const placed = quantities.map((quantity) => along(look, quantity));
  if (runs.length === 1) return [[id, ofOneRun(look, placed, runs[0].name)]];
  return placed
    .filter((quantity) => runs.some(({ name }) => quantity.of(name)))
    .map((quantity) => [`${id}-${quantity.id}`, ofSeveralRuns(look, quantity, runs)]);
}

/** Returns a quantity whose series are placed along the axis of these charts. */
function along(look, quantity) {
  const place = (of) => of && ((run) => look.along(run, of(run)));
  const margin = (run) => {
    const { low, high } = quantity.margin?.(run) ?? {};
    return { low: look.along(run, low), high: look.along(run, high) };
  };
  const { of, theory, marks } = quantity;
  const references = quantity.references?.map((one) => ({ ...one, of: place(one.of) }));
  return { ...quantity, of: place(of), theory: place(theory), marks: place(marks), margin, references };
}

function ofOneRun(look, quantities, run) {
  const drawing = { lines: [], bands: [] };
  for (const quantity of quantities) {
    const series = quantity.of(run);
    if (!series) continue;
    const { low, high } = quantity.margin?.(run) ?? {};
    const at = addLine(drawing, styled(quantity, series), low, high);
    for (const reference of quantity.references ?? []) addReference(drawing, quantity, reference, reference.of(run), at);
    addTheory(drawing, quantity, quantity.theory?.(run), at);
    addMarkers(drawing, quantity, quantity.marks?.(run), quantity.marked, at, 13);
  }
  return merged(look, drawing);
}

function ofMedians(look, quantities, runs) {
  const drawing = { lines: [], bands: [] };
  let count = 0;
  for (const quantity of quantities) {
    const all = runs.map(({ name }) => quantity.of(name)).filter(Boolean);
    if (!all.length) continue;
    count = Math.max(count, all.length);
    const { steps, median } = overRuns(all);
    const [lows, highs] = ["low", "high"].map((end) => runs.map(({ name }) => ended(quantity, name, end)).filter(Boolean));
    const [low, high] = [overRuns(lows).low, overRuns(highs).high];
    const ends = [low, high].map((values) => ({ steps, values }));
    const at = addLine(drawing, styled(quantity, { steps, values: median }), ...ends);
    for (const reference of quantity.references ?? []) {
      const known = runs.map(({ name }) => reference.of(name)).filter(Boolean);
      if (known.length) addReference(drawing, quantity, reference, medianOf(known), at);
    }
    const theories = runs.map(({ name }) => quantity.theory?.(name)).filter(Boolean);
    if (theories.length) addTheory(drawing, quantity, medianOf(theories), at);
  }
  const title = `${look.title}: median and range of ${counted(count, "run")}`;
  const band = "lowest to highest of the runs";
  return merged({ ...look, title, band, x: "step", right: undefined, rightLines: [] }, drawing);
}

function medianOf(all) {
  const { steps, median } = overRuns(all);
  return { steps, values: median };
}

function ofSeveralRuns(look, quantity, runs) {
  const [lines, bands] = [[], []];
  const theories = runs.map(({ name }) => quantity.theory?.(name));
  const shared = shownByAll(theories);
  const expected = quantity.expected ?? "theory";
  if (shared) lines.push({ ...THIN, ...shared, label: expected, color: ink().text, isReference: true });
  for (const { name, dash, of } of quantity.references ?? []) {
    const values = shownByAll(runs.map((run) => of(run.name)));
    if (values) lines.push({ ...values, label: name, dash, color: ink().muted, width: 1, isReference: true });
  }
  const all = runs.map(({ name }) => quantity.of(name));
  const widths = runs.length > MANY ? all.map(() => 1) : nested(all, 2);
  const names = unshared(runs.map(({ name }) => name));
  runs.forEach(({ name, color }, at) => {
    const series = all[at];
    if (!series) return;
    const bounds = boundsOnly(series, quantity.margin?.(name) ?? {}) ?? {};
    const line = { label: name, short: names[at], color, ...series, width: widths[at] };
    const place = addLine({ lines, bands }, line, bounds.low, bounds.high);
    if (theories[at] && !shared) {
      const label = `${name}, ${expected}`;
      lines.push({ ...THIN, ...theories[at], kind: "silent", label, color, partOf: place, meaning: expected });
    }
    addMarkers({ lines }, line, quantity.marks?.(name), quantity.marked, place, 13);
  });
  const title = quantity.label === look.title ? look.title : `${look.title}: ${quantity.label}`;
  return { ...look, title, many: true, right: undefined, lines, bands, note: coinciding(all, runs) };
}

// With many runs, lines are one pixel wide: browsers draw these five times as fast as wider ones.
const MANY = 6;
const THIN = { dash: [2, 4], width: 1 };

function styled({ label, short, color, dash, width, help }, series) {
  return { label, short, color, dash, width, help, ...series };
}

/** Returns a run's series; at steps without a value, with the lower or upper bound there. */
function ended({ of, margin }, run, end) {
  const series = of(run);
  return series && orBound(series, margin?.(run)?.[end]);
}

/** Adds a line, with a band around it if there are edges; returns its index. */
function addLine({ lines, bands }, line, low, high) {
  if (!low || !high) return lines.push(line) - 1;
  const { label, color } = line;
  const [up, down, at] = [0, 1, 2].map((n) => lines.length + n);
  lines.push({ label: `${label}, high`, color, kind: "edge", partOf: at, ...high });
  lines.push({ label: `${label}, low`, color, kind: "edge", partOf: at, ...low });
  lines.push({ ...line, bounds: [down, up] });
  bands.push([up, down, veil(color)]);
  return at;
}

function addReference(drawing, { label, color }, { name, dash }, series, partOf) {
  if (!series) return;
  const look = { dash, color: faint(color), width: 1.5, partOf, meaning: name };
  drawing.lines.push({ ...series, ...look, label: `${label}, ${name}` });
}

function addTheory(drawing, quantity, series, partOf) {
  const meaning = quantity.isOld ? "theory at the logged cut" : "theory";
  const color = quantity.isOld ? ink().muted : quantity.color;
  addMarkers(drawing, { ...quantity, color }, series, meaning, partOf);
}

function addMarkers(drawing, { label, color }, series, meaning, partOf, size) {
  if (!series?.steps.length) return;
  drawing.lines.push({ label: `${label}, ${meaning}`, color, kind: "markers", size, partOf, meaning, ...series });
}

function merged(look, { lines, bands }) {
  return { ...look, lines: [...lines, ...(look.rightLines ?? [])], bands };
}

/** Returns the series that all runs share, or null if they differ. */
function shownByAll(all) {
  const [first, ...others] = all;
  if (!first) return null;
  const same = (one) => one && sameItems(one.steps, first.steps) && sameItems(one.values, first.values);
  return others.every(same) ? first : null;
}
