// The layers of the selected runs: which there are, which the filter keeps, and what their names share.

import { naturally } from "./names.js";
import { plainTags } from "./seeds.js";

// With more layers, a run has a map of layers by steps in place of lines that nobody can tell apart.
export const MOST_LINES = 10;

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

/** Returns whether the name of a layer contains the filter's text. */
export const isKept = (app, layer) => layer.toLowerCase().includes(app.state.layers.toLowerCase());

/** Returns whether lines of so many layers are to be drawn as one map. */
export const isMapped = (app, count) => app.runs.length === 1 && count > MOST_LINES && !app.state.split;
