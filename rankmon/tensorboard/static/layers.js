// The lowest, median and highest value of each family of curves over the layers.

import { ChartGrid } from "./grid.js";
import { allTags } from "./layernames.js";
import { axisLabel, naturally } from "./names.js";
import { lineColor } from "./theme.js";

// Title and unit of the families that default probes log; others have those of the guide, or their tag.
const NAMES = {
  rank_weights: ["Rank of weights", "rank"],
  stable_rank: ["Stable rank of weights", "rank"],
  effective_rank: ["Effective rank of weights", "rank"],
  condition_number: ["Condition number of weights", "ratio"],
  log_abs_det: ["log|det W| of square weights", "log|det W|"],
  rank_features: ["Rank of layers' inputs", "rank"],
  dead_share: ["Dead units", "fraction"],
};
const MEDIAN = /^layers\/(.+)\/median$/;

/** A small chart per family: the median over the layers, and a band from the lowest to the highest. */
export class LayersSection {
  id = "layers";
  title = "All layers: median and range";
  prefixes = ["layers/"];

  constructor(app) {
    this.app = app;
    this.grid = new ChartGrid("small");
    this.host = this.grid.host;
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("layers/"));
  }

  draw() {
    const charts = this.families().flatMap((family) => {
      const [title, left] = NAMES[family] ?? this.guided(family);
      const quantity = { id: family, label: "median", color: lineColor(0), width: 2, ...this.logged(family) };
      const look = { title, left, fromZero: this.app.explained(`${family}/layer`).unit === "count", leftLog: family === "condition_number", height: 200, band: "lowest to highest layer" };
      return this.app.charts(`layers-${family}`, look, [quantity]);
    });
    this.grid.show(charts);
  }

  /** Returns title and axis label of a family, from the guide if it has a chart of the family. */
  guided(family) {
    const tag = `${family}/layer`;
    const charts = this.app.guide.sections.flatMap((section) => section.charts);
    const found = charts.find(({ tags }) => tags?.some((pattern) => new RegExp(pattern, "s").test(tag)));
    return [found?.title ?? family.replaceAll("_", " "), axisLabel(this.app.explained(tag).unit)];
  }

  /** Returns the median over the layers, with the lowest and the highest value as its margin. */
  logged(family) {
    const series = (run, statistic) => this.app.series(run, `layers/${family}/${statistic}`);
    return {
      of: (run) => series(run, "median"),
      margin: (run) => ({ low: series(run, "min"), high: series(run, "max") }),
    };
  }

  /** Returns the families of any selected run, those with a name of their own first. */
  families() {
    const found = new Set(allTags(this.app).map((tag) => MEDIAN.exec(tag)?.[1]).filter(Boolean));
    const first = Object.keys(NAMES).filter((family) => found.delete(family));
    return [...first, ...[...found].sort(naturally)];
  }
}
