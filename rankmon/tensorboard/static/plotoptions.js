// uPlot's options for a chart: axes, scales, lines and bands.

import { drawBars } from "./bounds.js";
import { drawMissing } from "./missing.js";
import { thinned } from "./paths.js";
import { ink } from "./theme.js";
import { logSplits, logSteps, powerTick, tickWords } from "./ticks.js";

export const FONT = "12px system-ui, sans-serif";

/** Returns a name of the horizontal axis; charts with the same one share pointer and zoom. */
export const axisOf = ({ x }) => `rankmon ${x ?? "step"}`;

/** Returns uPlot's options. Values that may change without a rebuild are read from the chart later. */
export function options(chart, width, hidden) {
  const { spec } = chart;
  const color = ink();
  const drawn = (filter) => ({
    grid: { stroke: color.grid, width: 1, filter },
    ticks: { stroke: color.grid, width: 1, filter },
  });
  const axis = (given) => ({
    stroke: color.text,
    ...drawn((_, all) => all),
    font: FONT,
    labelFont: FONT,
    labelSize: 18,
    ...given,
  });
  const ticks = (isLog) => (_, all) => (isLog ? all.map(powerTick) : tickWords(all));
  const within = (u, all) => all.map((value) => (value < u.scales.x.min ? null : value)); // uPlot adds -1 to log steps
  const whole = (isLog) => (isLog ? { splits: logSplits } : {});
  const axes = [
    axis({ label: spec.x ?? "step", size: 36, space: 55, ...(WHOLE_X.includes(spec.x) && !spec.logX ? { incrs: WHOLE } : {}), values: spec.logX ? logSteps : ticks(false), filter: within, ...drawn(within) }),
    axis({ label: spec.left, size: 62, values: ticks(spec.leftLog), ...whole(spec.leftLog), ...counts(spec), ...rowsOf(spec) }),
  ];
  if (spec.right) {
    const given = { scale: "right", side: 1, label: spec.right, size: 62, grid: { show: false } };
    axes.push(axis({ ...given, values: ticks(spec.rightLog), ...whole(spec.rightLog) }));
  }
  const series = spec.lines.map((line) => seriesOf(line, hidden));
  return {
    width,
    height: spec.height ?? 300,
    padding: [10, spec.right ? 0 : 28, 0, 0],
    scales: {
      x: { time: false, distr: spec.logX ? 4 : 1, asinh: 1, range: rangeExactly },
      y: { range: (...at) => (chart.inPlot.rangeY ?? (spec.fromZero ? rangeFromZero : rangeAround))(...at) },
      right: { range: rangeAround },
    },
    axes,
    series: [{}, ...series],
    bands: (spec.bands ?? []).map(([high, low, fill]) => ({ series: [high + 1, low + 1], fill })),
    hooks: {
      setScale: [(_, scale) => scale === "x" && chart.uplot && chart.showZoom()],
      drawAxes: [(u) => chart.inPlot.under?.(u)],
      draw: [
        (u) => drawBars(u, chart.inPlot.lines),
        (u) => drawMissing(u, chart.inPlot.lines, chart.data),
        (u) => chart.inPlot.over?.(u),
      ],
    },
    legend: { show: false },
    cursor: {
      drag: { x: true, y: false },
      points: { size: 6 },
      sync: { key: axisOf(spec), setSeries: false, scales: ["x", null] },
    },
    focus: { alpha: 1 },
  };
}

// Distances between labels of steps and counts, which have no fractions.
const WHOLE = Array.from({ length: 15 }, (_, decade) => [1, 2, 5].map((digit) => digit * 10 ** decade)).flat();
const WHOLE_X = [undefined, "step", "index"];
const counts = ({ left, fromZero }) => (fromZero && (left === "rank" || left === "count") ? { incrs: WHOLE } : {});

const [ROW_PIXELS, LETTER_PIXELS] = [12, 7];

/** Returns the options of the left axis of a map: a name for each row, or for some of them. */
function rowsOf({ rowNames }) {
  if (!rowNames) return {};
  const splits = (u) => {
    const every = Math.ceil((ROW_PIXELS * rowNames.length * devicePixelRatio) / u.bbox.height);
    return rowNames.map((_, at) => at + 1).filter((_, at) => (rowNames.length - 1 - at) % every === 0);
  };
  const longest = Math.max(...rowNames.map(({ length }) => length));
  return { size: Math.min(24 + LETTER_PIXELS * longest, 150), grid: { show: false }, splits, values: (_, all) => all.map((at) => rowNames[at - 1]) };
}

function seriesOf(line, hidden) {
  const base = {
    label: line.label,
    scale: line.right ? "right" : "y",
    spanGaps: false,
    show: !hidden.has(line.label),
  };
  if (line.kind === "edge") return { ...base, width: 0, points: { show: false } };
  if (line.kind === "markers") {
    const size = line.size ?? 7;
    const points = { show: true, size, stroke: line.color, width: 1.2, fill: line.fill ?? "transparent", space: 12 };
    return { ...base, stroke: line.color, width: 0, paths: () => null, points: { ...points, filter: spaced } };
  }
  const isMeasured = line.kind !== "silent" && !line.meaning && !line.isReference; // points on a bound would look like measurements
  const isShort = line.steps.length < 40 && isMeasured;
  const points = { show: isShort, size: Math.max(4, line.width ?? 0), fill: line.color, stroke: line.color };
  return { ...base, stroke: line.color, width: line.width ?? 2, dash: line.dash, points, paths: thinned };
}

const MARKER_PIXELS = 14;

/** Selects markers that do not touch, with the first. */
function spaced(u, index, show) {
  if (!show) return null;
  const values = u.data[index];
  const [from, to] = u.series[0].idxs ?? [0, values.length - 1];
  const least = Math.max(MARKER_PIXELS, u.bbox.width / devicePixelRatio / 30) * devicePixelRatio;
  const chosen = [];
  let last = -Infinity;
  for (let at = from; at <= to; at++) {
    if (typeof values[at] !== "number") continue;
    const x = u.valToPos(u.data[0][at], "x", true);
    if (x - last < least) continue;
    chosen.push(at);
    last = x;
  }
  return chosen;
}

function rangeExactly({ data: [xs] }, low, high) {
  return xs?.length === 1 ? [xs[0] - 0.5, xs[0] + 0.5] : [low, high]; // uPlot would put one step at the edge
}

function rangeFromZero(_, low, high) {
  return [Math.min(0, low ?? 0), (high || 1) * 1.05];
}

function rangeAround(_, low, high) {
  if (low === null || low === undefined) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  return [low - room, high + room];
}
