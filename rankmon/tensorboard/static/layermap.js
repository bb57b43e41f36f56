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
  const table = tabled(rows.map(({ series }) => series));
  const { steps, values, range, none } = table;
  const places = app.along(run, { steps, values: steps }).steps;
  const map = { steps: places, indices: rows.map((_, at) => at), values };
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
    lines: [{ label: "layers", color: ink().text, kind: "silent", steps: places, values: none }],
    rangeY: () => [0.5, rows.length + 0.5],
    under: drawingOf(table, map),
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

const made = new WeakMap(); // by the values of the first row: most maps do not change with the cut

/** Returns steps, values and image of a map with these rows. */
function tabled(rows) {
  if (!rows.length) return drawnTable(rows);
  const known = made.get(rows[0].values);
  const isSame = (row, at) => row.values === known.rows[at].values && row.steps === known.rows[at].steps;
  if (known?.rows.length === rows.length && rows.every(isSame)) return known;
  const found = { rows, ...drawnTable(rows) };
  made.set(rows[0].values, found);
  return found;
}

/** Returns what draws a map; a table at the same places has the same, which a chart need not draw again. */
function drawingOf(table, map) {
  if (table.places !== map.steps) {
    Object.assign(table, { places: map.steps, under: (u) => drawHeatMap(u, map, table.image) });
  }
  return table.under;
}

function drawnTable(rows) {
  const steps = commonSteps(rows);
  const values = tableOf(rows, steps);
  const range = rangeOf(values);
  const image = painted({ steps, indices: rows, values }, range);
  return { steps, values, range, image, none: steps.map(() => NaN) };
}

function commonSteps(rows) {
  const kinds = [...new Set(rows.map(({ steps }) => steps))];
  return kinds.length === 1 ? kinds[0] : [...new Set(kinds.flat())].sort((a, b) => a - b);
}

function tableOf(rows, steps) {
  const place = new Map(steps.map((step, at) => [step, at]));
  const values = new Float64Array(steps.length * rows.length).fill(NaN);
  rows.forEach((series, row) => {
    const at = series.steps === steps ? (i) => i : (i) => place.get(series.steps[i]);
    for (let i = 0; i < series.steps.length; i++) values[at(i) * rows.length + row] = series.values[i];
  });
  return values;
}

function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  return low < high ? [low, high] : [Math.min(0, low), Math.max(high, 1)];
}
