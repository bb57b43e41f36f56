// The labels of axes: with as many digits as tell neighbors apart, and powers of ten.

import { shown } from "./values.js";

const LABEL_PIXELS = 90;
const LOG_PIXELS = 30;
const STEPS = [1, 2, 5, 10, 20, 50, 100]; // decades between labels
const LEADING = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]];

/** Returns the places of labels on a logarithmic axis, as exponents of round numbers, never of rounded ones. */
export function logSplits(u, _, low, high) {
  const most = Math.max(2, Math.floor(u.bbox.height / devicePixelRatio / LOG_PIXELS));
  const [first, last] = [Math.floor(low), Math.ceil(high)];
  const within = (all) => all.filter((at) => at >= low && at <= high);
  const decades = (by) => Array.from({ length: Math.floor((last - first) / by) + 1 }, (_, at) => (Math.ceil(first / by) + at) * by);
  if (high - low >= 2) return within(decades(STEPS.find((by) => (high - low) / by <= most) ?? STEPS.at(-1)));
  const found = LEADING.map((digits) => within(decades(1).flatMap((at) => digits.map((digit) => at + Math.log10(digit)))));
  const fitting = found.filter((all) => all.length >= 3 && all.length <= most);
  return fitting.at(-1) ?? within(evenly(10 ** low, 10 ** high, most).map(Math.log10));
}

/** Returns round numbers at equal distances. */
function evenly(low, high, most) {
  const least = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(least));
  const by = size * [1, 2, 5, 10].find((digit) => digit * size >= least);
  const count = Math.floor(high / by) - Math.ceil(low / by) + 1;
  return Array.from({ length: count }, (_, at) => (Math.ceil(low / by) + at) * by);
}

/** Returns the labels of logarithmic steps: powers of ten, and 2 and 5 times these if there is room. */
export function logSteps(u, all) {
  const decades = Math.max(1, Math.log10(Math.max(u.scales.x.max, 10)));
  const isRoomy = u.bbox.width / devicePixelRatio / decades > 2 * LABEL_PIXELS;
  const leading = isRoomy ? ["1", "2", "5"] : ["1"];
  const isShown = (value) => value === 0 || leading.includes(Math.abs(value).toExponential()[0]);
  return all.map((value) => (value !== null && isShown(value) ? tick(value) : ""));
}

const MOST_DIGITS = 12;

const decimals = (value) => String(value).split(".")[1]?.length ?? 0;

/** Returns the labels of an axis, all with as many decimals as its values need. */
export function tickWords(all) {
  const known = all.filter((value) => value !== null);
  const largest = Math.max(...known.map(Math.abs));
  if (largest < 1e6 && largest >= 1e-3) {
    const rounded = (value) => (Math.abs(value) < 1e-9 * largest ? 0 : Number(value.toPrecision(MOST_DIGITS)));
    const most = Math.max(...known.map((value) => decimals(rounded(value))));
    return all.map((value) => (value === null ? "" : rounded(value).toFixed(most)));
  }
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
  if (!Number.isInteger(exponent)) return tick(Number(value.toPrecision(MOST_DIGITS)));
  return Math.abs(exponent) <= 3 ? String(Number(value.toPrecision(1))) : `1e${exponent}`;
}
