// Colors of runs by the value of a hyperparameter: an order of colors for numbers, distinct ones for words.

import { naturally } from "./names.js";
import { orderedColor, runColor } from "./theme.js";

/** Returns the hyperparameters that differ between runs, those of the user and of rankmon alike. */
export function varying(all) {
  const names = new Set(all.flatMap(({ hparams }) => Object.keys(hparams ?? {})));
  return [...names].filter((name) => valuesOf(all, name).length > 1).sort(naturally);
}

/** Returns the color of each run. Numbers are ranked: values at equal ratios are as far apart as others. */
export function byHparam(all, name) {
  const values = valuesOf(all, name);
  const isOrdered = values.every((value) => typeof value === "number");
  const place = new Map(values.map((value, at) => [value, at]));
  return all.map(({ hparams }) => {
    const at = place.get(hparams?.[name]);
    if (at === undefined) return "#808080";
    return isOrdered ? orderedColor(at / Math.max(values.length - 1, 1)) : runColor(at);
  });
}

function valuesOf(all, name) {
  const values = [...new Set(all.map(({ hparams }) => hparams?.[name]))].filter((value) => value !== undefined);
  const areNumbers = values.every((value) => typeof value === "number");
  return values.sort(areNumbers ? (a, b) => a - b : (a, b) => naturally(String(a), String(b)));
}
