// The labels of axes: with as many digits as tell neighbors apart, and powers of ten.

import { shown } from "./values.js";

// Spacing of labels on a logarithmic axis: whole decades, or fractions if the range is small.
export const DECADES = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100];

const LABEL_PIXELS = 90;

/** Returns the labels of logarithmic steps: powers of ten, and 2 and 5 times these if there is room. */
export function logSteps(u, all) {
  const decades = Math.max(1, Math.log10(Math.max(u.scales.x.max, 10)));
  const isRoomy = u.bbox.width / devicePixelRatio / decades > 2 * LABEL_PIXELS;
  const leading = isRoomy ? ["1", "2", "5"] : ["1"];
  const isShown = (value) => value === 0 || leading.includes(Math.abs(value).toExponential()[0]);
  return all.map((value) => (value !== null && isShown(value) ? tick(value) : ""));
}

const MOST_DIGITS = 12;

/** Returns the labels of an axis, with as many digits as its values need. */
export function tickWords(all) {
  const known = all.filter((value) => value !== null);
  const largest = Math.max(...known.map(Math.abs));
  if (largest < 1e6 && largest >= 1e-3) return all.map((value) => (value === null ? "" : String(Number(value.toPrecision(MOST_DIGITS)))));
  const isExact = (digits) => known.every((value) => Math.abs(Number(value.toExponential(digits)) - value) <= 1e-9 * largest);
  let digits = 0;
  while (digits < MOST_DIGITS && !isExact(digits)) digits += 1;
  const word = (value) => (value === 0 ? "0" : String(Number(value.toExponential(digits)).toExponential()).replace("e+", "e"));
  return all.map((value) => (value === null ? "" : word(value)));
}

function tick(value) {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(0) : shown(value);
}

export function powerTick(exponent) {
  if (exponent === null) return "";
  const value = 10 ** exponent;
  if (!Number.isInteger(exponent)) return tick(Number(value.toPrecision(2)));
  return Math.abs(exponent) <= 3 ? String(Number(value.toPrecision(1))) : `1e${exponent}`;
}
