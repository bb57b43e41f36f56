// Values that are not finite: triangles at the lower edge of a chart, and a sentence below it.

import { allFinite } from "./finite.js";
import { counted, listed } from "./names.js";

const MOST_MARKS = 30;
const SIZE = 5;

const isDrawn = ({ kind }) => (kind ?? "line") === "line";

/** Returns a sentence on the lines without finite values or with gaps; "" if there are none. */
export function wordsOnMissing(lines) {
  const gaps = lines
    .filter((line) => isDrawn(line) && line.values.length)
    .map((line) => ({ label: line.label, all: line.values.length, missing: missingIn(line, lines) }));
  const never = gaps.filter(({ all, missing }) => missing === all).map(({ label }) => label);
  const some = gaps.filter(({ all, missing }) => missing > 0 && missing < all);
  const sentences = [];
  if (never.length) sentences.push(`NaN at every step: ${listed(never)}.`);
  for (const count of new Set(some.map(({ missing }) => missing))) {
    const names = some.filter(({ missing }) => missing === count).map(({ label }) => label);
    sentences.push(`▲ NaN at ${counted(count, "step")}: ${listed(names)}.`);
  }
  return sentences.join(" ");
}

/** Returns the number of steps at which neither a value nor its bounds are known. */
function missingIn({ steps, values, bounds }, lines) {
  if (allFinite(values)) return 0;
  let missing = steps.filter((_, at) => !Number.isFinite(values[at]));
  if (missing.length && bounds) {
    const low = lines[bounds[0]];
    const known = new Set(low.steps.filter((_, at) => Number.isFinite(low.values[at])));
    missing = missing.filter((step) => !known.has(step));
  }
  return missing.length;
}

/** Draws a triangle in a line's color at some of the steps at which its value is not finite. */
export function drawMissing(u, lines, data) {
  const { ctx, bbox } = u;
  const size = SIZE * devicePixelRatio;
  let bottom = bbox.top + bbox.height;
  lines.forEach((line, at) => {
    if (!isDrawn(line) || !u.series[at + 1].show) return;
    const values = data[at + 1]; // as logged, not as logarithms
    const [from, to] = u.series[0].idxs ?? [0, values.length - 1];
    const places = [];
    const low = line.bounds ? data[line.bounds[0] + 1] : [];
    for (let i = from; i <= to; i++) if (values[i] === null && low[i] == null) places.push(i); // undefined: not logged
    const every = Math.max(1, Math.ceil(places.length / MOST_MARKS));
    ctx.fillStyle = line.color;
    for (const i of places.filter((_, n) => n % every === 0)) {
      const x = u.valToPos(u.data[0][i], "x", true);
      ctx.beginPath();
      ctx.moveTo(x - size, bottom);
      ctx.lineTo(x + size, bottom);
      ctx.lineTo(x, bottom - 1.6 * size);
      ctx.closePath();
      ctx.fill();
    }
    if (places.length) bottom -= 1.2 * size; // the triangles of the next line are above
  });
}
