// Charts of quantities over steps: for one run, or for several runs as lines or as median and range.

import { boundsOnly, orBound } from "./bounds.js";
import { overRuns } from "./seeds.js";
import { ink, veil } from "./theme.js";

/**
 * @typedef {{steps: number[], values: ArrayLike<number>}} Series
 * @typedef {{name: string, color: string}} Run
 *
 * @typedef {Object} Quantity
 * @property {string} id
 * @property {string} label
 * @property {string} color the quantity's color in charts of one run or of medians
 * @property {(run: string) => Series|undefined} of
 * @property {(run: string) => {low?: Series, high?: Series}} [margin]
 * @property {(run: string) => Series|undefined} [theory]
 * @property {(run: string) => Series|undefined} [marks] points of interest on the line
 * @property {string} [marked] the meaning of these points
 * @property {number[]} [dash]
 * @property {number} [width]
 */

/**
 * @param {string} id the chart's id; charts of several runs append the id of a quantity
 * @param {Partial<import("./chart.js").Spec>} look properties that all the charts share
 * @param {Quantity[]} quantities
 * @param {Run[]} runs
 * @param {boolean} asMedian whether to show several runs as median and range, not as lines
 * @returns {[string, import("./chart.js").Spec][]} charts by id
 */
export function evolution(id, look, quantities, runs, asMedian) {
  if (runs.length === 1) return [[id, ofOneRun(look, quantities, runs[0].name)]];
  if (asMedian) return [[id, ofMedians(look, quantities, runs)]];
  return quantities
    .filter((quantity) => runs.some(({ name }) => quantity.of(name)))
    .map((quantity) => [`${id}-${quantity.id}`, ofSeveralRuns(look, quantity, runs)]);
}

function ofOneRun(look, quantities, run) {
  const drawing = { lines: [], bands: [] };
  for (const quantity of quantities) {
    const series = quantity.of(run);
    if (!series) continue;
    const { low, high } = quantity.margin?.(run) ?? {};
    const bounds = addBand(drawing, quantity, low, high);
    drawing.lines.push({ ...styled(quantity, series), bounds });
    addMarkers(drawing, quantity, quantity.theory?.(run), "theory");
    addMarkers(drawing, quantity, quantity.marks?.(run), quantity.marked, 13);
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
    const bounds = addBand(drawing, quantity, { steps, values: low }, { steps, values: high });
    drawing.lines.push({ ...styled(quantity, { steps, values: median }), bounds });
    const theories = runs.map(({ name }) => quantity.theory?.(name)).filter(Boolean);
    if (!theories.length) continue;
    const expected = overRuns(theories);
    addMarkers(drawing, quantity, { steps: expected.steps, values: expected.median }, "theory");
  }
  const title = `${look.title}: median and range of ${count} runs`;
  return merged({ ...look, title, right: undefined, rightLines: [] }, drawing);
}

function ofSeveralRuns(look, quantity, runs) {
  const [lines, bands] = [[], []];
  const theories = runs.map(({ name }) => quantity.theory?.(name));
  const shared = shownByAll(theories);
  if (shared) lines.push({ ...THIN, ...shared, label: "theory", color: ink().text });
  runs.forEach(({ name, color }, at) => {
    const series = quantity.of(name);
    if (!series) return;
    const line = { label: name, color, ...series, width: runs.length > MANY ? 1 : 2 };
    const bounds = boundsOnly(series, quantity.margin?.(name) ?? {});
    if (bounds) line.bounds = addBand({ lines, bands }, line, bounds.low, bounds.high);
    lines.push(line);
    if (theories[at] && !shared) {
      line.theory = lines.length;
      lines.push({ ...THIN, ...theories[at], kind: "silent", label: `${name}, theory`, color });
    }
    const marks = quantity.marks?.(name);
    if (marks) lines.push({ kind: "markers", size: 13, ...marks, label: `${name}, ${quantity.marked}`, color });
  });
  const title = quantity.label === look.title ? look.title : `${look.title}: ${quantity.label}`;
  return { ...look, title, many: true, right: undefined, lines, bands };
}

// With many runs, lines are one pixel wide: browsers draw these five times as fast as wider ones.
const MANY = 6;
const THIN = { dash: [2, 4], width: 1 };

function styled({ label, color, dash, width }, series) {
  return { label, color, dash, width, ...series };
}

/** Returns a run's series; at steps without a value, with the lower or upper bound there. */
function ended({ of, margin }, run, end) {
  const series = of(run);
  return series && orBound(series, margin?.(run)?.[end]);
}

/** Returns the indices of the edges, low and high. */
function addBand(drawing, { label, color }, low, high) {
  if (!low || !high) return undefined;
  const at = drawing.lines.length;
  drawing.lines.push({ label: `${label}, high`, color, kind: "edge", ...high });
  drawing.lines.push({ label: `${label}, low`, color, kind: "edge", ...low });
  drawing.bands.push([at, at + 1, veil(color)]);
  return [at + 1, at];
}

function addMarkers(drawing, { label, color }, series, meaning, size) {
  if (!series?.steps.length) return;
  drawing.lines.push({ label: `${label}, ${meaning}`, color, kind: "markers", size, ...series });
}

function merged(look, { lines, bands }) {
  return { ...look, lines: [...lines, ...(look.rightLines ?? [])], bands };
}

/** Returns the series that all runs share, or null if they differ. */
function shownByAll(all) {
  const [first, ...others] = all;
  const equal = (a, b) => a.length === b.length && a.every((value, at) => Object.is(value, b[at]));
  const same = (one) => one && equal(one.steps, first.steps) && equal(one.values, first.values);
  return first && others.every(same) ? first : null;
}
