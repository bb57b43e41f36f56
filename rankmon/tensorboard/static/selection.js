// The runs that are selected before the user has chosen any.

import { isSummary } from "./seeds.js";

const folder = (name) => name.split("/").slice(0, -1).join("/");
const hasRanks = ({ scalars }) => scalars.some((tag) => tag.startsWith("rank/H_"));

/**
 * Returns the names of the runs to hide at the first visit: all but the newest run with ranks of a
 * Hessian, and the other seeds of its `SeedsMonitor`. Runs of different networks and lengths in one
 * chart would show none of them. Without times, as in a report, no run is hidden.
 */
export function hiddenAtFirst(all) {
  if (!all.length || !all.every(({ latest }) => latest)) return [];
  const candidates = all.some(hasRanks) ? all.filter(hasRanks) : all;
  const newest = candidates.reduce((a, b) => (b.latest > a.latest ? b : a), candidates[0]);
  const siblings = all.filter(({ name }) => folder(name) === folder(newest.name));
  const areSeeds = siblings.some(({ scalars }) => isSummary(scalars));
  const shown = new Set((areSeeds ? siblings : [newest]).map(({ name }) => name));
  return all.map(({ name }) => name).filter((name) => !shown.has(name));
}
