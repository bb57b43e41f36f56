// Ranks of which only bounds are known: a band with bars in the place of a line, and the bounds as a text.

import { allFinite } from "./finite.js";

const MOST_BARS = 30;
const [CAP, SPACING] = [4, 6];

/** Returns the bounds as a text, for example 1,024–19,968. */
export function interval(low, high) {
  const word = (value) =>
    Number.isInteger(value) ? value.toLocaleString("en-US") : String(Number(value.toPrecision(6)));
  const words = [low, high].map(word);
  return low === high ? words[0] : words.join(low < 0 ? " to " : "–");
}

/**
 * @param {Series} series
 * @param {{low?: Series, high?: Series}} margin
 * @returns {{low: Series, high: Series}|null} the bounds at the steps without a value, null if there are none
 * @typedef {import("./source.js").Series} Series
 */
export function boundsOnly(series, { low, high }) {
  if (!low || !high || !hasUnknown(series)) return null;
  const known = new Set(series.steps.filter((_, at) => !Number.isNaN(series.values[at])));
  const rest = ({ steps, values }) => ({ steps, values: steps.map((s, at) => (known.has(s) ? NaN : values[at])) });
  const bounds = { low: rest(low), high: rest(high) };
  return bounds.low.values.some((value) => !Number.isNaN(value)) ? bounds : null;
}

/** Returns the series with one of its bounds, "low" or "high", at the steps without a value. */
export function orBound(series, bound) {
  if (!bound || !hasUnknown(series)) return series;
  const at = new Map(bound.steps.map((step, i) => [step, bound.values[i]]));
  const values = Array.from(series.values, (v, i) => (Number.isNaN(v) ? (at.get(series.steps[i]) ?? NaN) : v));
  return { steps: series.steps, values };
}

const hasUnknown = ({ values }) => !allFinite(values) && values.some(Number.isNaN);

/** Draws a bar with ends from low to high at some of the steps at which a line has bounds only. */
export function drawBars(u, lines) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const bounded = lines.map((_, at) => at).filter((at) => lines[at].bounds && u.series[at + 1].show);
  bounded.forEach((at, n) => {
    const beside = (n - (bounded.length - 1) / 2) * SPACING * devicePixelRatio; // bars at one step stay visible
    drawBarsOf(u, lines[at], u.data[at + 1], beside);
  });
  ctx.restore();
}

function drawBarsOf(u, { bounds, color }, values, beside) {
  const [low, high] = bounds.map((index) => u.data[index + 1]);
  const isBounded = (i) => values[i] == null && low[i] != null && high[i] != null;
  const [from, to] = u.series[0].idxs ?? [0, values.length - 1];
  const places = [];
  for (let i = from; i <= to; i++) if (isBounded(i)) places.push(i);
  const every = Math.max(1, Math.ceil(places.length / MOST_BARS));
  const { ctx } = u;
  const cap = CAP * devicePixelRatio;
  ctx.beginPath();
  Object.assign(ctx, { strokeStyle: color, lineWidth: 1.5 * devicePixelRatio });
  ctx.setLineDash([]);
  for (const i of places.filter((_, n) => n % every === 0 || n === places.length - 1)) {
    const x = u.valToPos(u.data[0][i], "x", true) + beside;
    const [bottom, top] = [low, high].map((ends) => u.valToPos(ends[i], "y", true));
    for (const [x1, y1, x2, y2] of [
      [x, bottom, x, top],
      [x - cap, bottom, x + cap, bottom],
      [x - cap, top, x + cap, top],
    ]) {
      ctx.moveTo(x1, y1);
      ctx.lineTo(x2, y2);
    }
  }
  ctx.stroke();
}
