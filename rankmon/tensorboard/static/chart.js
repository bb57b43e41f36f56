// A chart of lines over steps: uPlot draws it, hovering shows values, and a menu saves it.

import uPlot from "./vendor/uPlot.esm.min.js";
import { aligned, placed } from "./aligned.js";
import { button, element } from "./dom.js";
import { wordsOnMissing } from "./missing.js";
import { Legend, linesOf } from "./legend.js";
import { MapCursor } from "./mapcursor.js";
import { axisOf, options } from "./plotoptions.js";
import { pngOf, svgOf } from "./pictures.js";
import { rich } from "./richtext.js";
import { saveMenu } from "./savemenu.js";

/**
 * @typedef {Object} Line
 * @property {string} label
 * @property {string} color
 * @property {number[]} steps
 * @property {ArrayLike<number>} values
 * @property {number[]} [dash]
 * @property {number} [width]
 * @property {number} [size] the size of markers
 * @property {"line"|"markers"|"edge"|"silent"} [kind] "edge": the edge of a band, not drawn;
 *   "silent": drawn, but not saved as CSV
 * @property {string} [help] an explanation, shown when the pointer rests on the entry of the legend
 * @property {number} [partOf] index of the line that this one belongs to: its theory, or its band
 * @property {string} [meaning] the name of such a line's value beside the other's
 * @property {boolean} [isReference] whether the line is to compare with, so that its points are not marked
 * @property {string} [short] the label in the legend, where all labels begin alike
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
 * @property {string} [ground] the color below the lines, if it is not the page's
 * @property {string[]} [rowNames] names of the rows of a map, from below, in place of numbers
 * @property {{gradient: string, low: string, high: string, unit: string}} [colors] the scale of a map
 * @property {() => {steps: number[], rows: [string, number[]][]}} [table] the numbers of a map, for CSV
 * @property {string} [help] an explanation, shown by a button
 * @property {string} [note] a sentence below the chart
 * @property {string} [band] what the bands of the lines mean, for the legend
 * @property {boolean} [isStale] whether the chart could not follow the moved cut
 * @property {boolean} [many] whether each line is a run; the legend is sorted by value
 * @property {Line[]} lines
 * @property {[number, number, string][]} [bands] indices of the upper and the lower line, and the color
 * @property {{steps: number[], indices: number[], first: number, words: (step: number, row: number) => string}} [map]
 *   the places of a map's columns and rows, the row to read first, and a text on a place
 * @property {(u: uPlot) => void} [under] draws below the lines
 * @property {(u: uPlot) => void} [over] draws above the lines
 * @property {Function} [rangeY] the range of the left axis, as for uPlot's scales
 */

export class Chart {
  /**
   * @param {string} id a name for tests and files
   * @param {Spec} spec
   */
  constructor(id, spec) {
    this.id = id;
    this.title = element("h3");
    this.plot = element("div", { class: "plot", role: "img" });
    const unzoom = () => this.uplot.setScale("x", { min: this.data[0][0], max: this.data[0].at(-1) });
    this.zoom = button("Reset zoom", unzoom, { class: "zoom", hidden: true, title: "Or double-click the chart" });
    this.help = element("p", { class: "help", hidden: true });
    this.helpButton = button("?", () => this.toggleHelp(), { class: "ask", "aria-expanded": "false", hidden: true });
    this.scale = element("p", { class: "scale", hidden: true });
    const head = element("header", {}, this.title, this.helpButton, this.zoom, saveMenu(this));
    this.reading = element("figcaption");
    this.missing = element("p", { class: "missing", role: "status" });
    const attributes = { class: "chart", "data-testid": `chart-${id}` };
    this.legend = new Legend((entry) => this.toggle(entry));
    this.host = element("figure", attributes, head, this.help, this.plot, this.scale, this.legend.host, this.missing, this.reading);
    this.resizing = new ResizeObserver(() => this.resize());
    this.resizing.observe(this.plot);
    this.seeing = new IntersectionObserver(([{ isIntersecting }]) => this.seen(isIntersecting), NEAR);
    this.seeing.observe(this.host);
    this.cursor = new MapCursor(this);
    this.spec = spec;
    Chart.all.set(id, this);
  }

  /** Sets new data, which is drawn once the chart is visible. */
  update(spec) {
    this.spec = spec;
    this.name(spec.title, spec.help ?? "");
    this.cursor.follow(spec.map);
    this.plot.style.minHeight = `${spec.height ?? 300}px`;
    this.showColors(spec.colors);
    this.host.classList.toggle("many", Boolean(spec.many));
    this.host.classList.toggle("stale", Boolean(spec.isStale));
    const words = [wordsOnMissing(spec.lines), spec.note].filter(Boolean).join(" ");
    if (words !== this.missing.textContent) this.missing.textContent = words;
    this.draw();
  }

  /** Shows title and help, if they are new: each change of the page makes the browser lay it out again. */
  name(title, help) {
    if (title === this.named?.title && help === this.named.help) return;
    this.named = { title, help };
    this.title.replaceChildren(...rich(title));
    if (!this.uplot) this.plot.setAttribute("aria-label", title);
    this.help.textContent = help;
    this.helpButton.hidden = !help;
    this.helpButton.setAttribute("aria-label", `What is this: ${title}`);
  }

  toggleHelp() {
    this.help.hidden = !this.help.hidden;
    this.helpButton.setAttribute("aria-expanded", String(!this.help.hidden));
  }

  /** Shows the color scale of a map. */
  showColors(colors) {
    this.scale.hidden = !colors;
    const key = JSON.stringify(colors);
    if (!colors || key === this.colors) return;
    this.colors = key;
    const bar = element("span", { class: "bar" });
    bar.style.background = colors.gradient;
    this.scale.replaceChildren(`${colors.unit}: ${colors.low} `, bar, ` ${colors.high}`);
  }

  seen(isSeen) {
    this.isSeen = isSeen;
    this.draw();
  }

  /** Draws new data; if the lines are the same, keeps the zoom and the hidden lines. */
  draw() {
    if (!this.isSeen || this.spec === this.drawn || !this.isWide) return;
    const same = this.uplot && shape(this.spec) === shape(this.drawn);
    if (!same) this.rebuild();
    else if (!haveSameData(this.spec, this.drawn)) this.redraw();
    this.drawn = this.spec;
  }

  redraw() {
    this.inPlot = this.spec;
    const { min, max } = this.uplot.scales.x;
    const zoomed = this.isZoomed();
    this.data = aligned(this.spec.lines);
    this.legend.spec = this.spec; // of the same shape: its entries stay
    this.uplot.batch(() => {
      this.uplot.setData(placed(this.data, this.spec), true);
      if (zoomed) this.uplot.setScale("x", { min, max });
    });
    this.cursor.renew();
    this.read();
  }

  /** Shows the values under the pointer in the legend, or the last ones. */
  read() {
    const { idx, left } = this.uplot.cursor;
    const isPointed = left >= 0 && idx !== null && idx !== undefined;
    this.legend.read(this.data, idx, isPointed);
    if (!this.cursor.place) this.plot.setAttribute("aria-label", this.words());
    this.reading.textContent = isPointed ? this.cursor.words() : "";
  }

  /** Returns title and values, for those who cannot see the chart. */
  words() {
    const { title, map } = this.inPlot;
    const keys = map ? " Arrow keys, Home and End read the map; Escape leaves it." : "";
    return `${title}. ${this.legend.words()}${keys}`;
  }

  /** Hides or shows an entry of the legend, with its band and its theory. */
  toggle(entry) {
    const isShown = !this.uplot.series[entry + 1].show;
    this.uplot.batch(() => {
      for (const at of linesOf(this.spec.lines, entry)) this.uplot.setSeries(at + 1, { show: isShown });
    });
    this.legend.mark(entry, isShown);
  }

  isZoomed() {
    const { min, max } = this.uplot.scales.x;
    const xs = this.data[0];
    if (typeof min !== "number") return false; // not drawn yet
    return xs.length > 1 && (min > xs[0] || max < xs.at(-1));
  }

  showZoom() {
    this.zoom.hidden = !this.isZoomed();
  }

  /** Zooms a new chart like those with the same axis that are on the page already. */
  zoomAsOthers() {
    const alike = (one) => one !== this && one.uplot && axisOf(one.spec) === axisOf(this.spec) && one.isZoomed();
    const other = [...Chart.all.values()].find(alike);
    if (!other) return;
    const { min, max } = other.uplot.scales.x;
    this.uplot.setScale("x", { min, max });
  }

  /** Draws the whole chart again, with the colors of the current theme. */
  rebuild() {
    const hidden = new Set(
      this.uplot ? this.uplot.series.filter((one) => !one.show).map((one) => one.label) : [],
    );
    this.discard();
    this.data = aligned(this.spec.lines);
    this.inPlot = this.spec; // until the next drawing, while `spec` may be newer
    const given = options(this, this.width(), hidden);
    given.hooks.setCursor = [() => this.uplot && this.read()];
    this.uplot = null; // until it is made, hooks find none
    this.uplot = new uPlot(given, placed(this.data, this.spec), this.plot);
    this.legend.show(this.spec, (at) => this.uplot.series[at + 1].show);
    this.zoomAsOthers();
    this.cursor.renew();
    this.read();
  }

  width() {
    return Math.max(this.plot.clientWidth, 200);
  }

  /** Fits the chart to its place. To ask for the width at each drawing would lay out the whole page again. */
  resize() {
    this.isWide = this.plot.clientWidth > 0;
    if (this.isWide) this.uplot?.setSize({ width: this.width(), height: this.spec.height ?? 300 });
    this.draw();
  }

  /** Removes the drawing, with its hooks: a drawing that it still owes would be made from newer lines. */
  discard() {
    if (!this.uplot) return;
    for (const name of Object.keys(this.uplot.hooks)) this.uplot.hooks[name] = [];
    this.uplot.destroy();
  }

  destroy() {
    this.resizing.disconnect();
    this.seeing.disconnect();
    this.discard();
    Chart.all.delete(this.id);
  }

  /** Returns the visible lines, without the edges of bands. */
  visible() {
    return this.spec.lines.filter((line, i) => !isQuiet(line) && this.uplot.series[i + 1].show);
  }

  csv() {
    const { table } = this.spec;
    const lines = table ? table().rows.map(([label]) => ({ label })) : this.visible();
    const [steps, ...columns] = table ? [table().steps, ...table().rows.map(([, row]) => row)] : aligned(lines);
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const cell = (value) => (Number.isFinite(value) ? String(value) : "");
    const rows = steps.map((step, at) => [step, ...columns.map((c) => cell(c[at]))].join(","));
    const names = [this.spec.x ?? "step", ...lines.map((line) => line.label)];
    return `${names.map(quoted).join(",")}\n${rows.join("\n")}\n`;
  }

  png() {
    return pngOf(this);
  }

  svg() {
    return svgOf(this);
  }
}

/** All charts on the page by id. @type {Map<string, Chart>} */
Chart.all = new Map();

/** Charts are drawn when they are this close to the visible part of the page. */
const NEAR = { rootMargin: "200px" };

const haveSameData = (one, other) =>
  one.over === other.over &&
  one.under === other.under &&
  one.lines.every((line, at) => line.values === other.lines[at].values && line.steps === other.lines[at].steps);

/** Returns a key of the chart's structure; if it changes, new data does not suffice: see rebuild(). */
function shape(spec) {
  const { left, right, x, logX, leftLog, rightLog, height, lines, bands } = spec;
  const looks = lines.map(({ label, color, dash, kind, width }) => [label, color, dash, kind, width]);
  return JSON.stringify([left, right, x, logX, leftLog, rightLog, height, looks, bands]);
}

const isQuiet = ({ kind }) => kind === "edge" || kind === "silent";
