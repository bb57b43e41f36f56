// The layers of the selected runs: which there are, which the filter keeps, and what their names share.

import { naturally } from "./names.js";
import { plainTags } from "./seeds.js";
import { lineColor } from "./theme.js";

// With more layers, a run has a map of layers by steps in place of lines that nobody can tell apart.
export const MOST_LINES = 10;
const WEIGHTS = "rank_weights/";

/** Returns the tags of the selected runs, those of summaries of seeds without their ends. */
export function allTags(app) {
  const found = new Set();
  for (const { name } of app.runs) {
    const tags = app.tags(name);
    for (const tag of plainTags(tags)) found.add(tag);
  }
  return [...found];
}

/** Returns the layers for which any selected run has a tag with this prefix, in natural order. */
export function layersOf(app, prefix) {
  const layers = allTags(app).filter((tag) => tag.startsWith(prefix)).map((tag) => tag.slice(prefix.length));
  return layers.filter((layer) => isKept(app, layer)).sort(naturally);
}

const orders = new WeakMap(); // the layers with weights, by selection of runs

/** Returns a color for each of some layers, by its place among all weights: the same in every section. */
export function layerColors(app, layers) {
  if (!orders.has(app.runs)) {
    const weights = allTags(app).filter((tag) => tag.startsWith(WEIGHTS)).map((tag) => tag.slice(WEIGHTS.length));
    orders.set(app.runs, weights.sort(naturally));
  }
  const places = layers.map((layer) => orders.get(app.runs).indexOf(layer));
  return places.map((place, at) => lineColor(places.includes(-1) ? at : place));
}

/** Returns whether the name of a layer contains the filter's text. */
export const isKept = (app, layer) => layer.toLowerCase().includes(app.state.layers.toLowerCase());

/** Returns whether lines of so many layers are to be drawn as one map. */
export const isMapped = (app, count) => app.runs.length === 1 && count > MOST_LINES && !app.state.split;
