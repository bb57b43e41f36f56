// The data of a chart in uPlot's format: common steps, and one column per line.

import uPlot from "./vendor/uPlot.esm.min.js";
import { allFinite, sameItems } from "./finite.js";

/** Returns the data in uPlot's format: common steps, and one column per line, with null for gaps. */
export function aligned(lines) {
  if (!lines.length) return [[]];
  const first = lines[0].steps;
  const sameSteps = ({ steps }) => sameItems(steps, first);
  const columns = lines.map(({ values }) => withGaps(values));
  if (lines.every(sameSteps)) return [first, ...columns];
  return uPlot.join(lines.map((line, at) => [line.steps, columns[at]]));
}

const gapped = new WeakMap();

/** Replaces NaN and infinite values by null; without such values, returns the same array. */
function withGaps(values) {
  if (allFinite(values)) return values;
  if (!gapped.has(values)) gapped.set(values, Array.from(values, (value) => (Number.isFinite(value) ? value : null)));
  return gapped.get(values);
}

/**
 * Returns the values to draw: logarithms for lines on a logarithmic axis. uPlot's own logarithmic axes
 * end at 1e-24, but losses can be smaller.
 */
export function placed([steps, ...columns], { lines, leftLog, rightLog }) {
  const log10 = (value) => (value > 0 ? Math.log10(value) : value === undefined ? value : null);
  const isLog = ({ right }) => (right ? rightLog : leftLog);
  return [steps, ...columns.map((column, at) => (isLog(lines[at]) ? column.map(log10) : column))];
}
