// Ranks as shares of the number of parameters p, which makes networks of different sizes comparable.

export const [COUNT, SHARE] = ["count", "share of p"];

// The card's fact, also as cards of older versions have it. The hyperparameter "parameters" counts held ones, too.
const FACT = /<td>p<\/td>\s*<td>([\d,]+)(?: differentiated parameters|: parameters that are differentiated)<\/td>/;

/** Returns p of a run, undefined if it is not certain: not on every card of the run, or not always the same. */
export function parametersOf(app, { name }) {
  const cards = app.texts.get(name)?.["rankmon/card"] ?? [];
  const found = new Set(cards.map(({ html }) => Number(FACT.exec(html)?.[1].replaceAll(",", ""))));
  const [p] = found;
  return found.size === 1 && p > 0 ? p : undefined;
}

/** Returns the number of parameters by run, if ranks are to be shares of it and it is certain; else null. */
export function parametersByRun(app) {
  if (!app.state.share) return null;
  const known = new Map(app.runs.map((run) => [run.name, parametersOf(app, run)]));
  return [...known.values()].every(Boolean) ? known : null;
}

/** Returns a series divided by a number. */
export const divided = (series, by) => series && { ...series, values: Array.from(series.values, (value) => value / by) };
