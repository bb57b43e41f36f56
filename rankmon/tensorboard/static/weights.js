// The sections with measurements of each layer: weights, determinants, features.

import { element } from "./dom.js";
import { ChartGrid } from "./grid.js";
import { layerMap } from "./layermap.js";
import { isMapped, layerColors, layersOf, MOST_LINES } from "./layernames.js";
import { layerName, layerTitle, unshared } from "./names.js";
import { lineColor } from "./theme.js";

/** Returns the logged series of a tag, and its range over seeds, for charts. */
const logged = (app, tag) => ({
  of: (run) => app.series(run, tag),
  margin: (run) => app.range(run, tag),
});

const KINDS = [
  ["rank_weights", "Rank of each weight"],
  ["stable_rank", "Stable rank of each weight"],
  ["effective_rank", "Effective rank of each weight"],
];

/** One small chart per layer: rank, stable rank and effective rank; of many layers, a map. */
export class WeightsSection {
  id = "weights";
  title = "Weights";
  followsCut = true;
  prefixes = ["rank_weights/", "stable_rank/", "effective_rank/"];

  constructor(app) {
    this.app = app;
    this.grid = new ChartGrid("small");
    this.note = element("p", { class: "hint" });
    this.host = element("div", {}, this.note, this.grid.host);
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("rank_weights/"));
  }

  draw() {
    const layers = layersOf(this.app, "rank_weights/");
    const isSummed = this.app.runs.length > 1 && layers.length > MOST_LINES && !this.app.state.split;
    const isMaps = isMapped(this.app, layers.length);
    this.grid.columns.classList.toggle("small", !isMaps); // names of layers take room
    this.note.textContent = isSummed ? `${layers.length} layers: see their median and range under "All layers".` : "";
    if (isSummed) this.grid.show([]);
    else if (isMaps) this.grid.show(this.maps(layers));
    else this.grid.show(layers.flatMap((layer) => this.chart(layer)));
  }

  /** Returns the charts of one layer. */
  chart(layer) {
    const quantity = (id, label, color, width) => ({
      id,
      label,
      color,
      width,
      ...logged(this.app, `${id}/${layer}`),
    });
    const quantities = [
      { ...quantity("rank_weights", "rank", lineColor(0), 3), of: (run) => this.app.weightRank(run, layer) },
      quantity("effective_rank", "effective rank", lineColor(2)),
      quantity("stable_rank", "stable rank", lineColor(1)),
    ];
    const isStale = !this.app.isAtCut(layer);
    const look = { title: layerTitle(layer), left: "rank", fromZero: true, height: 200, isStale };
    return this.app.charts(`weights-${layer}`, look, quantities);
  }

  /** Returns a map of layers by steps for each kind of rank. */
  maps(layers) {
    const names = unshared(layers);
    const [{ name }] = this.app.runs;
    return KINDS.filter(([id]) => this.app.series(name, `${id}/${layers[0]}`)).map(([id, title]) => {
      const isRank = id === "rank_weights";
      const rows = layers.map((layer, at) => ({
        label: layerName(names[at]),
        of: (run) => (isRank ? this.app.weightRank(run, layer) : this.app.series(run, `${id}/${layer}`)),
      }));
      const isStale = isRank && !layers.every((layer) => this.app.isAtCut(layer));
      return [`weights-${id}`, layerMap(this.app, { title, left: "rank", isStale }, rows)];
    });
  }
}

/** log|det| of the square weights, with its changes of sign. */
export class DeterminantsSection {
  id = "determinants";
  title = "Determinants of square weights";
  prefixes = ["log_abs_det/", "det_sign/"];

  constructor(app) {
    this.app = app;
    this.grid = new ChartGrid("wide");
    this.host = this.grid.host;
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("log_abs_det/"));
  }

  draw() {
    const { runs, state } = this.app;
    const layers = layersOf(this.app, "log_abs_det/");
    const colors = layerColors(this.app, layers);
    const quantities = layers.map((layer, at, all) => ({
      id: layer,
      label: layerName(layer),
      color: colors[at],
      width: 2 + 2 * Math.min(all.length - 1 - at, 3), // curves of balanced layers coincide
      ...logged(this.app, `log_abs_det/${layer}`),
      marks: (run) => this.signChanges(run, layer),
      marked: "sign changes",
    }));
    const look = { title: "log|det W|", left: "log|det W|", height: 260 };
    this.grid.columns.classList.toggle("wide", runs.length === 1 || state.median);
    if (isMapped(this.app, quantities.length)) {
      const names = unshared(quantities.map(({ label }) => label));
      const rows = quantities.map((quantity, at) => ({ ...quantity, label: names[at] }));
      this.grid.show([["determinants", layerMap(this.app, look, rows)]]);
    } else this.grid.show(this.app.charts("determinants", look, quantities));
  }

  /** Returns log|det| at the steps at which the sign changes; undefined if there are none. */
  signChanges(run, layer) {
    const [size, sign] = ["log_abs_det", "det_sign"].map((tag) => this.app.series(run, `${tag}/${layer}`));
    if (!size || !sign) return undefined;
    const logged = new Map(size.steps.map((step, at) => [step, size.values[at]]));
    const changed = (at) => at > 0 && sign.values[at] * sign.values[at - 1] < 0;
    const steps = sign.steps.filter((step, at) => changed(at) && logged.has(step));
    return steps.length ? { steps, values: steps.map((step) => logged.get(step)) } : undefined;
  }
}
