// The sections with measurements of each layer: weights, determinants, features.

import { evolution } from "./evolution.js";
import { ChartGrid } from "./grid.js";
import { isSummary, summarized } from "./seeds.js";
import { lineColor } from "./theme.js";

/** Returns the logged series of a tag, and its range over seeds, for charts. */
const logged = (app, tag) => ({
  of: (run) => app.series(run, tag),
  margin: (run) => app.range(run, tag),
});

/** Returns the layers for which any selected run has a tag with this prefix, in natural order. */
export function layersOf(app, prefix) {
  const found = new Set();
  for (const { name } of app.runs) {
    const tags = app.tags(name);
    const plain = isSummary(tags) ? tags.map(summarized) : tags;
    for (const tag of plain) if (tag.startsWith(prefix)) found.add(tag.slice(prefix.length));
  }
  return [...found].sort(new Intl.Collator("en", { numeric: true }).compare);
}

/** One small chart per layer: rank, stable rank and effective rank. */
export class WeightsSection {
  id = "weights";
  title = "Weights";
  prefixes = ["rank_weights/", "stable_rank/", "effective_rank/"];

  constructor(app) {
    this.app = app;
    this.grid = new ChartGrid("small");
    this.host = this.grid.host;
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("rank_weights/"));
  }

  draw() {
    const { runs, state } = this.app;
    const charts = layersOf(this.app, "rank_weights/").flatMap((layer) => {
      const quantity = (id, label, color, width) => ({
        id,
        label,
        color,
        width,
        ...logged(this.app, `${id}/${layer}`),
      });
      const quantities = [
        quantity("rank_weights", "rank", "#0072b2", 3),
        quantity("effective_rank", "effective rank", "#009e73"),
        quantity("stable_rank", "stable rank", "#d55e00"),
      ];
      const look = { title: `Layer ${layer}`, left: "rank", logX: state.logX, fromZero: true, height: 200 };
      return evolution(`weights-${layer}`, look, quantities, runs, state.median);
    });
    this.grid.show(charts);
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
    const quantities = layersOf(this.app, "log_abs_det/").map((layer, at, all) => ({
      id: layer,
      label: layer,
      color: lineColor(at),
      width: 2 + 2 * Math.min(all.length - 1 - at, 3), // curves of balanced layers coincide
      ...logged(this.app, `log_abs_det/${layer}`),
      marks: (run) => this.signChanges(run, layer),
      marked: "sign changes",
    }));
    const look = { title: "log|det W|", left: "log|det W|", logX: state.logX, height: 260 };
    this.grid.host.classList.toggle("wide", runs.length === 1 || state.median);
    this.grid.show(evolution("determinants", look, quantities, runs, state.median));
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

/** The ranks of the layers' inputs, and the numbers of dead units. */
export class FeaturesSection {
  id = "features";
  title = "Features";
  prefixes = ["rank_features/", "dead_units/"];

  constructor(app) {
    this.app = app;
    this.grid = new ChartGrid("medium");
    this.host = this.grid.host;
  }

  isFor(tags) {
    return tags.some((tag) => this.prefixes.some((prefix) => tag.startsWith(prefix)));
  }

  draw() {
    this.grid.show([
      ...this.charts("features", "rank_features/", "Rank of a layer's input", "rank"),
      ...this.charts("dead", "dead_units/", "Dead units after a layer", "units"),
    ]);
  }

  charts(id, prefix, title, left) {
    const { runs, state } = this.app;
    const quantities = layersOf(this.app, prefix).map((layer, at) => ({
      id: layer,
      label: layer,
      color: lineColor(at),
      ...logged(this.app, prefix + layer),
    }));
    if (!quantities.length) return [];
    const look = { title, left, logX: state.logX, fromZero: true, height: 240 };
    return evolution(id, look, quantities, runs, state.median);
  }
}
