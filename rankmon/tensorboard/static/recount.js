// Ranks at a moved cut, from the table of counts of the logged spectra at each position of the slider.

/** The position of the slider at which the cut is the logged one. */
export const LOGGED = 80;
const POSITIONS = 161;
const DECADE = 10;

/** Returns the factor on the cut at this position of the slider. */
export const factor = (position) => 10 ** ((position - LOGGED) / DECADE);

/** @returns {import("./source.js").Series} the counts of a part at a position of the slider */
export function countsAt({ steps, table }, position) {
  const row = Math.min(Math.max(position, 0), POSITIONS - 1);
  return { steps, values: table.subarray(row * steps.length, (row + 1) * steps.length) };
}

/** Returns rank and margin of a part at a position of the slider; null if there are no counts. */
export function recounted(counts, part, position) {
  const counted = counts?.parts[part];
  if (!counted) return null;
  return {
    rank: countsAt(counted, position),
    low: countsAt(counted, position + DECADE),
    high: countsAt(counted, position - DECADE),
  };
}
