// Ranks at another cut, counted in the browser: the logged spectra's counts at each factor.

/** The slider's place at which the cut is the one that training used. */
export const LOGGED = 80;
const POSITIONS = 161;
const DECADE = 10;

/** The factor that this place of the slider stands for. */
export const factor = (position) => 10 ** ((position - LOGGED) / DECADE);

/** @returns {import("./source.js").Series} the counts of a part at a place of the slider */
export function countsAt({ steps, table }, position) {
  const row = Math.min(Math.max(position, 0), POSITIONS - 1);
  return { steps, values: table.subarray(row * steps.length, (row + 1) * steps.length) };
}

/** The rank of a part and its margin at a place of the slider; null where nothing was counted. */
export function recounted(counts, part, position) {
  const counted = counts?.parts[part];
  if (!counted) return null;
  return {
    rank: countsAt(counted, position),
    low: countsAt(counted, position + DECADE),
    high: countsAt(counted, position - DECADE),
  };
}
