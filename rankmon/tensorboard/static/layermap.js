// A map of layers by steps: one row of colors for each layer, in place of many lines.

import { drawHeatMap, painted } from "./heatmap.js";
import { shortened } from "./names.js";
import { heatGradient, ink } from "./theme.js";
import { brief, shown } from "./values.js";

const [ROW, LEAST, MOST] = [14, 220, 640];

/**
 * Returns the spec of a chart with a row for each quantity, the first on top.
 * @param {import("./app.js").App} app
 * @param {Partial<import("./chart.js").Spec>} look
 * @param {import("./evolution.js").Quantity[]} quantities
 */
export function layerMap(app, look, quantities) {
  const [{ name: run }] = app.runs;
  const rows = quantities.map((quantity) => ({ quantity, series: quantity.of(run) })).filter(({ series }) => series);
  rows.reverse(); // a chart's axis rises
  const steps = [...new Set(rows.flatMap(({ series }) => series.steps))].sort((a, b) => a - b);
  const values = tableOf(rows, steps);
  const range = rangeOf(values);
  const places = app.along(run, { steps, values: steps }).steps;
  const map = { steps: places, indices: rows.map((_, at) => at), values };
  const image = painted(map, range);
  const names = rows.map(({ quantity }) => quantity.label);
  const [low, high] = range;
  const rowOf = (row) => steps.map((_, at) => values[at * rows.length + row]);
  return {
    ...look,
    x: app.state.axis,
    logX: app.state.logX && app.state.axis === "step",
    left: "",
    rowNames: names.map((name) => shortened(name, 22)),
    height: Math.min(Math.max(rows.length * ROW + 60, LEAST), MOST),
    lines: [{ label: "layers", color: ink().text, kind: "silent", steps: places, values: steps.map(() => NaN) }],
    rangeY: () => [0.5, rows.length + 0.5],
    under: (u) => drawHeatMap(u, map, image),
    colors: { gradient: heatGradient(), low: brief(low), high: brief(high), unit: look.left },
    map: {
      steps: places,
      indices: map.indices,
      first: rows.length - 1, // on top
      words: (step, row) => `${app.state.axis} ${shown(places[step])}, ${names[row]}: ${shown(values[step * rows.length + row])}`,
    },
    table: () => ({ steps: places, rows: rows.map((_, at) => [names[at], rowOf(at)]).reverse() }),
  };
}

function tableOf(rows, steps) {
  const place = new Map(steps.map((step, at) => [step, at]));
  const values = new Float64Array(steps.length * rows.length).fill(NaN);
  rows.forEach(({ series }, row) => {
    series.steps.forEach((step, at) => (values[place.get(step) * rows.length + row] = series.values[at]));
  });
  return values;
}

function rangeOf(values) {
  const known = values.filter(Number.isFinite);
  if (!known.length) return [0, 1];
  const [low, high] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  return low < high ? [low, high] : [Math.min(0, low), Math.max(high, 1)];
}
