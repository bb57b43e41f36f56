// A chart of lines over steps: uPlot draws it, hovering shows values, and buttons save PNG, SVG and CSV.

import uPlot from "./vendor/uPlot.esm.js";
import { drawBars, interval } from "./bounds.js";
import { button, element, save } from "./dom.js";
import { thinned } from "./paths.js";
import { recorded } from "./svg.js";
import { ink } from "./theme.js";

/**
 * @typedef {Object} Line
 * @property {string} label
 * @property {string} color
 * @property {number[]} steps
 * @property {ArrayLike<number>} values
 * @property {number[]} [dash]
 * @property {number} [width]
 * @property {number} [size] the size of markers
 * @property {"line"|"markers"|"edge"|"silent"} [kind] "edge": the edge of a band, neither drawn nor in
 *   the legend; "silent": drawn, but not in the legend
 * @property {number} [theory] index of the silent line whose value the legend shows next to this line's
 * @property {[number, number]} [bounds] indices of the edges that bound a value where it is unknown
 * @property {boolean} [right] whether the line uses the second axis
 *
 * @typedef {Object} Spec
 * @property {string} title
 * @property {string} left the label of the left axis
 * @property {string} [right]
 * @property {string} [x] the label of the x axis, by default "step"
 * @property {boolean} [logX]
 * @property {boolean} [fromZero] whether the left axis begins at zero
 * @property {boolean} [leftLog]
 * @property {boolean} [rightLog]
 * @property {number} [height]
 * @property {boolean} [many] whether each line is a run; the page lists the runs with their colors
 * @property {Line[]} lines
 * @property {[number, number, string][]} [bands] indices of the upper and the lower line, and the color
 * @property {(u: uPlot) => string} [reading] returns a text on the point under the pointer, if the
 *   legend does not show its value
 * @property {(u: uPlot) => void} [under] draws below the lines
 * @property {(u: uPlot) => void} [over] draws above the lines
 * @property {Function} [rangeY] the range of the left axis, as for uPlot's scales
 */

const FONT = "12px system-ui, sans-serif";

/** Formats a number: integers in full, other numbers with six digits. */
export function shown(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
}

export class Chart {
  /**
   * @param {string} id a name for tests and files
   * @param {Spec} spec
   */
  constructor(id, spec) {
    this.id = id;
    this.title = element("h3");
    this.plot = element("div", { class: "plot" });
    const saving = [
      button("PNG", () => this.png().then((blob) => save(`${fileName(id)}.png`, blob))),
      button("SVG", () => this.svg().then((text) => save(`${fileName(id)}.svg`, svgBlob(text)))),
      button("CSV", () => save(`${fileName(id)}.csv`, new Blob([this.csv()], { type: "text/csv" }))),
    ];
    for (const one of saving) one.title = `Save this chart as ${one.textContent}`;
    const head = element("header", {}, this.title, element("span", { class: "saving" }, ...saving));
    this.reading = element("figcaption");
    const attributes = { class: "chart", "data-testid": `chart-${id}` };
    this.host = element("figure", attributes, head, this.plot, this.reading);
    this.resizing = new ResizeObserver(() => this.resize());
    this.resizing.observe(this.plot);
    this.seeing = new IntersectionObserver(([{ isIntersecting }]) => this.seen(isIntersecting), NEAR);
    this.seeing.observe(this.host);
    this.spec = spec;
    Chart.all.set(id, this);
  }

  /** Sets new data, which is drawn once the chart is visible. */
  update(spec) {
    this.spec = spec;
    this.title.textContent = spec.title;
    this.plot.style.minHeight = `${spec.height ?? 300}px`;
    this.host.classList.toggle("many", Boolean(spec.many));
    this.draw();
  }

  seen(isSeen) {
    this.isSeen = isSeen;
    this.draw();
  }

  /** Draws new data; if the lines are the same, keeps the zoom and the hidden lines. */
  draw() {
    if (!this.isSeen || this.spec === this.drawn || !this.plot.clientWidth) return;
    const same = this.uplot && shape(this.spec) === shape(this.drawn);
    if (!same) this.rebuild();
    else if (this.spec.over || this.spec.under || !haveSameData(this.spec, this.drawn)) this.redraw();
    this.drawn = this.spec;
  }

  redraw() {
    const { min, max } = this.uplot.scales.x;
    const zoomed = this.isZoomed();
    this.data = aligned(this.spec.lines);
    this.uplot.batch(() => {
      this.uplot.setData(placed(this.data, this.spec), true);
      if (zoomed) this.uplot.setScale("x", { min, max });
    });
  }

  isZoomed() {
    const { min, max } = this.uplot.scales.x;
    const xs = this.data[0];
    if (typeof min !== "number") return false; // not drawn yet
    return xs.length > 1 && (min > xs[0] || max < xs.at(-1));
  }

  /** Draws the whole chart again, with the colors of the current theme. */
  rebuild() {
    const hidden = new Set(
      this.uplot ? this.uplot.series.filter((one) => !one.show).map((one) => one.label) : [],
    );
    this.uplot?.destroy();
    this.data = aligned(this.spec.lines);
    const given = options(this, this.width(), hidden);
    given.hooks.setCursor = [(u) => (this.reading.textContent = this.spec.reading?.(u) ?? "")];
    this.uplot = new uPlot(given, placed(this.data, this.spec), this.plot);
  }

  width() {
    return Math.max(this.plot.clientWidth, 200);
  }

  resize() {
    if (!this.plot.clientWidth) return;
    if (!this.uplot) this.draw();
    else this.uplot.setSize({ width: this.width(), height: this.spec.height ?? 300 });
  }

  destroy() {
    this.resizing.disconnect();
    this.seeing.disconnect();
    this.uplot?.destroy();
    Chart.all.delete(this.id);
  }

  /** Returns the visible lines, without the edges of bands. */
  visible() {
    return this.spec.lines.filter((line, i) => !isQuiet(line) && this.uplot.series[i + 1].show);
  }

  csv() {
    const lines = this.visible();
    const [steps, ...columns] = aligned(lines);
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const cell = (value) => (Number.isFinite(value) ? String(value) : "");
    const rows = steps.map((step, at) => [step, ...columns.map((c) => cell(c[at]))].join(","));
    const names = [this.spec.x ?? "step", ...lines.map((line) => line.label)];
    return `${names.map(quoted).join(",")}\n${rows.join("\n")}\n`;
  }

  async png() {
    const plot = this.uplot.ctx.canvas;
    const ratio = plot.width / this.uplot.width;
    const canvas = document.createElement("canvas");
    const head = this.headHeight() * ratio;
    Object.assign(canvas, { width: plot.width, height: plot.height + head });
    const ctx = canvas.getContext("2d");
    ctx.fillStyle = ink().page;
    ctx.fillRect(0, 0, canvas.width, canvas.height);
    ctx.drawImage(plot, 0, head);
    ctx.scale(ratio, ratio);
    this.drawHead(ctx);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  async svg() {
    const host = element("div");
    const hidden = new Set(this.uplot.series.filter((one) => !one.show).map((one) => one.label));
    const given = options(this, this.uplot.width, hidden);
    const { min, max } = this.uplot.scales.x;
    given.pxAlign = 0;
    let copy;
    const [context] = await recorded(() => {
      copy = new uPlot(given, placed(this.data, this.spec), host);
      copy.setScale("x", { min, max });
    });
    const ratio = context.canvas.width / this.uplot.width;
    const head = this.headHeight();
    const plot = context.text(context.canvas.width, context.canvas.height, "transparent");
    context.marks = [];
    context.clips = [];
    this.drawHead(context);
    const [width, height] = [this.uplot.width, this.uplot.height + head];
    const inside = plot.replace(
      /^<svg [^>]*>/,
      `<svg y="${head}" width="${width}" height="${this.uplot.height}"` +
        ` viewBox="0 0 ${width * ratio} ${this.uplot.height * ratio}">`,
    );
    context.marks.push(inside);
    copy.destroy();
    return context.text(width, height, ink().page);
  }

  headHeight() {
    return 30 + 18 * this.headRows().length;
  }

  /** Breaks the legend into rows that fit the width. */
  headRows() {
    const rows = [[]];
    let left = this.uplot.width - 20;
    for (const line of this.visible()) {
      const need = 7 * line.label.length + 36;
      if (need > left && rows.at(-1).length) {
        rows.push([]);
        left = this.uplot.width - 20;
      }
      rows.at(-1).push({ line, x: this.uplot.width - 10 - left });
      left -= need;
    }
    return rows;
  }

  /** Draws title and legend into a picture; on the page they are HTML. */
  drawHead(ctx) {
    ctx.fillStyle = ink().text;
    Object.assign(ctx, { font: `bold ${FONT}`, textAlign: "left", textBaseline: "alphabetic" });
    ctx.fillText(this.spec.title, 10, 20);
    ctx.font = FONT;
    this.headRows().forEach((row, at) => {
      for (const { line, x } of row) {
        const y = 40 + 18 * at;
        ctx.beginPath();
        ctx.setLineDash(line.dash ?? []);
        Object.assign(ctx, { strokeStyle: line.color, lineWidth: 2 });
        ctx.moveTo(x, y - 4);
        ctx.lineTo(x + 18, y - 4);
        ctx.stroke();
        ctx.fillText(line.label, x + 23, y);
      }
    });
    ctx.setLineDash([]);
  }
}

/** All charts on the page by id. @type {Map<string, Chart>} */
Chart.all = new Map();

const fileName = (id) => id.replaceAll(/[^\p{L}\p{N}.-]+/gu, "_");
const svgBlob = (text) => new Blob([text], { type: "image/svg+xml" });

/** Charts are drawn when they are this close to the visible part of the page. */
const NEAR = { rootMargin: "200px" };

const haveSameData = (one, other) =>
  one.lines.every((line, at) => line.values === other.lines[at].values && line.steps === other.lines[at].steps);

/** Returns a key of the chart's structure; if it changes, new data does not suffice: see rebuild(). */
function shape(spec) {
  const { left, right, x, logX, leftLog, rightLog, height, lines, bands } = spec;
  const looks = lines.map(({ label, color, dash, kind, width }) => [label, color, dash, kind, width]);
  return JSON.stringify([left, right, x, logX, leftLog, rightLog, height, looks, bands]);
}

/** Returns the data in uPlot's format: common steps, and one column per line, with null for gaps. */
export function aligned(lines) {
  if (!lines.length) return [[]];
  const first = lines[0].steps;
  const sameSteps = ({ steps }) =>
    steps === first || (steps.length === first.length && steps.every((s, i) => s === first[i]));
  const columns = lines.map(({ values }) => withGaps(values));
  if (lines.every(sameSteps)) return [first, ...columns];
  return uPlot.join(lines.map((line, at) => [line.steps, columns[at]]));
}

/** Replaces NaN and infinite values by null. Counts are always finite and returned unchanged. */
function withGaps(values) {
  const isCounts = values instanceof Uint16Array || values instanceof Uint32Array;
  return isCounts ? values : Array.from(values, (value) => (Number.isFinite(value) ? value : null));
}

/**
 * Returns the values to draw: logarithms for lines on a logarithmic axis. uPlot's own logarithmic axes
 * end at 1e-24, but losses can be smaller.
 */
function placed([steps, ...columns], { lines, leftLog, rightLog }) {
  const log10 = (value) => (value > 0 ? Math.log10(value) : value === undefined ? value : null);
  const isLog = ({ right }) => (right ? rightLog : leftLog);
  return [steps, ...columns.map((column, at) => (isLog(lines[at]) ? column.map(log10) : column))];
}

const isQuiet = ({ kind }) => kind === "edge" || kind === "silent";

/** Returns uPlot's options. Values that may change without a rebuild are read from the chart later. */
function options(chart, width, hidden) {
  const { spec } = chart;
  const color = ink();
  const axis = (given) => ({
    stroke: color.text,
    grid: { stroke: color.grid, width: 1 },
    ticks: { stroke: color.grid, width: 1 },
    font: FONT,
    labelFont: FONT,
    labelSize: 18,
    ...given,
  });
  const ticks = (isLog) => (_, all) => all.map(isLog ? powerTick : tick);
  const whole = (isLog) => (isLog ? { incrs: DECADES } : {});
  const axes = [
    axis({ label: spec.x ?? "step", size: 36, space: 80, values: ticks(false) }),
    axis({ label: spec.left, size: 62, values: ticks(spec.leftLog), ...whole(spec.leftLog) }),
  ];
  if (spec.right) {
    const given = { scale: "right", side: 1, label: spec.right, size: 62, grid: { show: false } };
    axes.push(axis({ ...given, values: ticks(spec.rightLog), ...whole(spec.rightLog) }));
  }
  const series = spec.lines.map((line, at) => seriesOf(chart, line, at, hidden));
  return {
    width,
    height: spec.height ?? 300,
    padding: [10, spec.right ? 0 : 28, 0, 0],
    scales: {
      x: { time: false, distr: spec.logX ? 4 : 1, asinh: 1, range: rangeExactly },
      y: { range: (...at) => (chart.spec.rangeY ?? (spec.fromZero ? rangeFromZero : rangeAround))(...at) },
      right: { range: rangeAround },
    },
    axes,
    series: [{ label: spec.x ?? "step", value: (_, v) => shown(v) }, ...series],
    bands: (spec.bands ?? []).map(([high, low, fill]) => ({ series: [high + 1, low + 1], fill })),
    hooks: {
      drawAxes: [(u) => chart.spec.under?.(u)],
      draw: [(u) => drawBars(u, chart.spec.lines), (u) => chart.spec.over?.(u)],
    },
    legend: { live: true },
    cursor: { drag: { x: true, y: false }, points: { size: 6 } },
    focus: { alpha: 1 },
  };
}

function seriesOf(chart, line, at, hidden) {
  const valueOf = (index, where) => (where === null ? null : chart.data[index + 1]?.[where]);
  /** Returns a text with the bounds of an unknown value; null if there are none. */
  const bounds = (where) => {
    if (where === null || !line.bounds || valueOf(at, where) != null) return null;
    const [low, high] = line.bounds.map((edge) => valueOf(edge, where));
    return low == null || high == null ? null : interval(low, high);
  };
  const words = (where) => {
    const own = bounds(where) ?? shown(valueOf(at, where));
    return line.theory === undefined || where === null ? own : `${own} (theory ${shown(valueOf(line.theory, where))})`;
  };
  const base = {
    label: line.label,
    scale: line.right ? "right" : "y",
    value: (_, __, ___, where) => words(where),
    spanGaps: false,
    show: !hidden.has(line.label),
    class: isQuiet(line) ? "quiet" : undefined,
  };
  if (line.kind === "edge") return { ...base, width: 0, points: { show: false } };
  if (line.kind === "markers") {
    const size = line.size ?? 7;
    const points = { show: true, size, stroke: line.color, width: 1.2, fill: "transparent", space: 12 };
    return { ...base, stroke: line.color, width: 0, paths: () => null, points: { ...points, filter: spaced } };
  }
  const isShort = line.steps.length < 40 && line.kind !== "silent";
  const points = { show: isShort, size: Math.max(4, line.width ?? 0), fill: line.color, stroke: line.color };
  return { ...base, stroke: line.color, width: line.width ?? 2, dash: line.dash, points, paths: thinned };
}

/** Selects at most about thirty markers, with the first and the last, so that they do not touch. */
function spaced(u, index, show) {
  if (!show) return null;
  const values = u.data[index];
  const [from, to] = u.series[0].idxs ?? [0, values.length - 1];
  const every = Math.max(1, Math.ceil((to - from) / 30));
  const chosen = [];
  for (let at = from; at <= to; at++) {
    if (values[at] !== null && ((at - from) % every === 0 || at === to)) chosen.push(at);
  }
  return chosen;
}

// Spacing of labels on a logarithmic axis: whole decades, or fractions if the range is small.
const DECADES = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100];

function tick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(0) : shown(value);
}

function powerTick(exponent) {
  if (exponent === null) return "";
  const value = 10 ** exponent;
  if (!Number.isInteger(exponent)) return tick(Number(value.toPrecision(2)));
  return Math.abs(exponent) <= 3 ? String(Number(value.toPrecision(1))) : `1e${exponent}`;
}

function rangeExactly(_, low, high) {
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function rangeFromZero(_, low, high) {
  return [Math.min(0, low ?? 0), (high || 1) * 1.05];
}

function rangeAround(_, low, high) {
  if (low === null || low === undefined) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  return [low - room, high + room];
}
