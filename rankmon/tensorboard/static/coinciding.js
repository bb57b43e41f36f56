// Runs whose curves are equal: all stay visible, and a sentence counts them.

import { sameItems } from "./finite.js";
import { counted, listed } from "./names.js";

const WIDEST = 8;

/** Returns the groups of indices of equal series, of two or more. */
function groups(all) {
  const byKey = new Map();
  all.forEach((series, at) => {
    if (!series?.steps.length) return;
    const key = `${series.steps.length} ${series.values[0]} ${series.values.at(-1)}`;
    const alike = byKey.get(key) ?? [];
    const group = alike.find(([first]) => areEqual(all[first], series));
    if (group) group.push(at);
    else alike.push([at]);
    byKey.set(key, alike);
  });
  return [...byKey.values()].flat().filter((group) => group.length > 1);
}

const areEqual = (a, b) => sameItems(a.steps, b.steps) && sameItems(a.values, b.values);

/** Returns the width of each line: of equal ones, those below are wider and look out on both sides. */
export function nested(all, width) {
  const widths = all.map(() => width);
  for (const group of groups(all)) {
    const step = Math.min(2.5, (WIDEST - width) / (group.length - 1));
    group.forEach((at, place) => (widths[at] = width + step * (group.length - 1 - place)));
  }
  return widths;
}

/** Returns a sentence that names the runs that coincide; "" if there are none. */
export function coinciding(all, runs) {
  const names = (group) => listed(group.map((at) => runs[at].name));
  return groups(all).map((group) => `${counted(group.length, "run")} coincide: ${names(group)}.`).join(" ");
}
