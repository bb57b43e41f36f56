// Read a map by keyboard: keys move a cursor over its steps and rows, and its value is shown and announced.

import { element } from "./dom.js";
import { placeAt } from "./heatmap.js";

const PAGE = 10; // rows
const [FAR_LEFT, FAR_RIGHT] = [-Infinity, Infinity];

// By how many steps, and by how many rows, upwards, a key moves the cursor.
const MOVES = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, 1],
  ArrowDown: [0, -1],
  PageUp: [0, PAGE],
  PageDown: [0, -PAGE],
  Home: [FAR_LEFT, 0],
  End: [FAR_RIGHT, 0],
};

export class MapCursor {
  /** @param {import("./chart.js").Chart} chart whose plot takes the focus if it is a map */
  constructor(chart) {
    this.chart = chart;
    this.place = null; // indices of the step and of the row while the keyboard reads
    this.spot = element("div", { class: "spot" });
    const { plot } = chart;
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && this.enter());
    plot.addEventListener("blur", () => this.leave());
    plot.addEventListener("keydown", (event) => this.pressed(event));
    plot.addEventListener("pointermove", () => this.place && this.forget()); // the pointer reads now
  }

  /** Makes the plot of a map focusable, and leaves others as pictures. */
  follow(map) {
    const { plot } = this.chart;
    plot.setAttribute("role", map ? "application" : "img"); // an application receives the arrow keys
    if (map) plot.tabIndex = 0;
    else plot.removeAttribute("tabindex");
  }

  get map() {
    const { uplot, inPlot } = this.chart;
    const map = uplot && inPlot.map;
    return map?.steps.length && map.indices.length ? map : null;
  }

  /** Puts the cursor where the pointer is, or else at the last step and the first row. */
  enter() {
    if (!this.map) return;
    const { steps, first } = this.map;
    this.chart.reading.setAttribute("aria-live", "polite");
    this.place = placeAt(this.chart.uplot, this.map) ?? [steps.length - 1, first];
    this.move([0, 0]);
  }

  pressed(event) {
    if (!this.map || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") this.chart.plot.blur();
    const by = MOVES[event.key];
    if (!by || event.target !== this.chart.plot) return;
    event.preventDefault(); // the page does not scroll
    if (!this.place) this.enter();
    this.move(by);
  }

  /** Moves the cursor, as far as there are steps in the zoomed range, and rows. */
  move([right, up]) {
    const { map } = this;
    const { min, max } = this.chart.uplot.scales.x;
    const isSeen = (step) => step >= min && step <= max;
    const ends = [[Math.max(map.steps.findIndex(isSeen), 0), Math.max(map.steps.findLastIndex(isSeen), 0)], [0, map.indices.length - 1]];
    this.place = [right, up].map((by, axis) => Math.min(Math.max(this.place[axis] + by, ends[axis][0]), ends[axis][1]));
    this.show();
  }

  /** Shows the cursor and its value, which uPlot's cursor also shows in the charts over the same steps. */
  show() {
    const { uplot } = this.chart;
    const [step, row] = this.place;
    const left = Math.max(uplot.valToPos(this.map.steps[step], "x"), 0);
    const top = Math.max(uplot.valToPos(this.map.indices[row] + 1, "y"), 0);
    Object.assign(this.spot.style, { left: `${left}px`, top: `${top}px` });
    uplot.over.append(this.spot);
    uplot.setCursor({ left, top });
  }

  /** Keeps the cursor where it is when new data was drawn. */
  renew() {
    if (!this.place) return;
    if (this.map) this.move([0, 0]);
    else this.forget();
  }

  forget() {
    this.place = null;
    this.spot.remove();
    this.chart.reading.removeAttribute("aria-live");
  }

  leave() {
    if (!this.place) return;
    this.forget();
    if (this.chart.plot.isConnected) this.chart.uplot.setCursor({ left: -10, top: -10 });
  }

  /** Returns the value under the cursor or the pointer as a text. */
  words() {
    const place = this.map && (this.place ?? placeAt(this.chart.uplot, this.map));
    return place ? this.map.words(...place) : "";
  }
}
