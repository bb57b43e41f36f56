// The section of Lemma 8: whether its assumptions hold, and predicted and measured log|det|.

import { element } from "./dom.js";
import { ChartGrid } from "./grid.js";
import { shown } from "./values.js";
import { layersOf } from "./layernames.js";
import { layerName, layerTitle } from "./names.js";
import { isSummary } from "./seeds.js";
import { lineColor } from "./theme.js";

const PREDICTED = "lemma8/predicted_log_abs_det/";
const ASSUMPTIONS = [
  ["square", "weights are square", () => ""],
  ["centered", "classes are centered", (section, run) => section.size(run, ["lemma8/target_input"])],
  ["balanced", "weights are balanced", (section, run) => section.size(run, section.balances(run))],
];

export class Lemma8Section {
  id = "lemma8";
  title = "Lemma 8: determinants along the gradient flow";
  prefixes = ["lemma8/", "log_abs_det/"];

  constructor(app) {
    this.app = app;
    this.table = element("table", { class: "facts" });
    this.grid = new ChartGrid("medium");
    const scrolled = element("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": "assumptions of Lemma 8" }, this.table);
    this.host = element("div", {}, scrolled, this.grid.host);
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("lemma8/"));
  }

  draw() {
    const { runs, state } = this.app;
    this.drawTable(runs.filter(({ scalars }) => this.isFor(scalars) && !isSummary(scalars)));
    const layers = layersOf(this.app, PREDICTED);
    const look = { height: 240 };
    const predicted = runs.filter(({ scalars }) => scalars.some((tag) => tag.startsWith(PREDICTED)));
    const isOne = predicted.length === 1 || state.median;
    const paths = layers.flatMap((layer) => {
      const title = `${layerTitle(layer)}: measured and predicted by Lemma 8`;
      const measured = this.quantity("measured", "measured", lineColor(0), `log_abs_det/${layer}`, { width: 4 });
      const prediction = this.quantity("predicted", "predicted", lineColor(1), PREDICTED + layer, { dash: [6, 4] });
      const quantities = isOne
        ? [measured, prediction]
        : [{ ...measured, label: title, theory: prediction.of, expected: "predicted" }];
      return this.app.charts(`lemma8-${layer}`, { ...look, title, left: "log|det W|" }, quantities, predicted);
    });
    const errors = layers.flatMap((layer, at) => [
      this.quantity(`${layer}-off`, `${layerName(layer)}: prediction error`, lineColor(at), `lemma8/prediction_error/${layer}`),
      this.quantity(`${layer}-by`, `${layerName(layer)}: quadrature error`, lineColor(at), `lemma8/quadrature_error/${layer}`, {
        dash: [2, 4],
      }),
    ]);
    const title = isOne ? "Prediction error and quadrature error" : "Lemma 8"; // followed by which of them
    const off = { ...look, title, left: "|error of log|det||", leftLog: true };
    this.grid.show([...paths, ...this.app.charts("lemma8-errors", off, errors, predicted)]);
  }

  quantity(id, label, color, tag, look = {}) {
    const absolute = (series) => ({ steps: series.steps, values: series.values.map(Math.abs) });
    const isError = tag.includes("_error/");
    const of = (run) => {
      const series = this.app.series(run, tag);
      return series && isError ? absolute(series) : series;
    };
    return { id, label, color, ...look, of };
  }

  drawTable(runs) {
    const heads = ["run", ...ASSUMPTIONS.map(([, meaning]) => meaning)];
    const row = ({ name }) =>
      element(
        "tr",
        { "data-testid": `lemma8-run-${name}` },
        element("th", { scope: "row" }, element("span", { class: "name" }, name)),
        ...ASSUMPTIONS.map(([tag, , size]) => this.verdict(name, tag, size(this, name))),
      );
    this.table.replaceChildren(
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...runs.map(row)),
    );
  }

  /** Returns a table cell: "met", "not met", or the step from which the assumption no longer holds. */
  verdict(run, tag, size) {
    const series = this.app.series(run, `lemma8/${tag}`);
    if (!series?.steps.length) return element("td", {}, "–");
    const failed = series.values.findIndex((value) => value !== 1);
    const words =
      failed < 0 ? "✓ met" : failed === 0 ? "✗ not met" : `✗ met before step ${series.steps[failed]}`;
    const kind = failed < 0 ? "met" : "unmet";
    return element("td", { class: kind }, words, size ? element("small", {}, ` ${size}`) : null);
  }

  balances(run) {
    return this.app.tags(run).filter((tag) => tag.startsWith("lemma8/balancedness/"));
  }

  /** Returns a text with the largest value of these tags over all steps. */
  size(run, tags) {
    const values = tags.flatMap((tag) => this.app.series(run, tag)?.values ?? []);
    const largest = values.reduce((a, b) => (b > a ? b : a), -Infinity);
    return Number.isFinite(largest) ? `off by at most ${shown(Number(largest.toPrecision(2)))}` : "";
  }
}
