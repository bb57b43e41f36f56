// The section of the signed eigenvalues of the Hessian's parts: extremes, counts, moments and soft ranks.

import { ChartGrid } from "./grid.js";
import { ink, partLook, partName, PARTS } from "./theme.js";
import { brief } from "./values.js";

const CHARTS = [
  ["eigenvalue_max", "Largest eigenvalue", "eigenvalue"],
  ["eigenvalue_min", "Smallest eigenvalue", "eigenvalue"],
  ["rank_0.1", "Eigenvalues above 0.1 ‖H_L‖", "count"],
  ["rank_0.01", "Eigenvalues above 0.01 ‖H_L‖", "count"],
  ["rank_0.001", "Eigenvalues above 0.001 ‖H_L‖", "count"],
  ["negative_0.01", "Negative eigenvalues, below -0.01 ‖H_L‖", "count"],
  ["negative", "Negative eigenvalues, below minus the cut", "count"],
  ["trace", "Trace", "trace"],
  ["norm", "Frobenius norm", "norm"],
  ["stable_rank", "Stable rank", "rank"],
  ["effective_rank", "Effective rank", "rank"],
];

const MANY = 12; // several runs have charts for each part: the rest on demand

const INTERVAL = "interval of an estimate, or range over the seeds";
const THRESHOLD = "eigenvalue_max_threshold";

const STABILITY = "stability threshold";
const FAR = 3; // times the curves' largest value: a scale up to there would flatten them

export class CurvatureSection {
  id = "curvature";
  title = "Signed curvature";
  prefixes = [
    `${THRESHOLD}/H_`,
    ...CHARTS.flatMap(([family]) => [`${family}/H_`, `interval_low/${family}/H_`, `interval_high/${family}/H_`]),
  ];

  constructor(app) {
    this.app = app;
    this.grid = new ChartGrid("medium", MANY);
    this.host = this.grid.host;
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("eigenvalue_max/H_"));
  }

  draw() {
    const { runs } = this.app;
    const charts = CHARTS.flatMap(([family, title, left]) => {
      const parts = PARTS.map((part) => this.quantity(family, part));
      const quantities = (family === "eigenvalue_max" ? [...parts, this.threshold()] : parts).filter(({ of }) =>
        runs.some(({ name }) => of(name)),
      );
      if (!quantities.length) return [];
      const look = { title, left, fromZero: left === "count" || left === "rank", height: 240, band: INTERVAL };
      return this.app.charts(`curvature-${family}`, look, quantities).map(([id, spec]) => [id, withoutFar(spec)]);
    });
    this.grid.show(charts);
  }

  /** Returns the edge of stability, above which gradient descent on H_L's quadratic diverges. */
  threshold() {
    const of = (run) => this.app.series(run, `${THRESHOLD}/H_L`);
    return { id: "threshold", label: STABILITY, color: ink().muted, dash: [6, 4], width: 1.5, of };
  }

  /** Returns a curve with its interval, or with its range if the run is a summary of seeds. */
  quantity(family, part) {
    const tag = `${family}/${part}`;
    const margin = (run) => {
      const range = this.app.range(run, tag);
      const own = (end) => this.app.series(run, `interval_${end}/${tag}`);
      return { low: range.low ?? own("low"), high: range.high ?? own("high") };
    };
    return { id: part, label: partName(part), ...partLook(part), of: (run) => this.app.series(run, tag), margin };
  }
}

/** Returns the chart with the scale of its curves alone, if the threshold is far above them; a note says so. */
function withoutFar(spec) {
  const threshold = spec.lines.find(({ label }) => label === STABILITY);
  const others = spec.lines.filter((line) => line !== threshold);
  if (!threshold || !others.length) return spec;
  const ends = (lines) => {
    const known = lines.flatMap(({ values }) => Array.from(values).filter(Number.isFinite));
    return [known.reduce((a, b) => Math.min(a, b), Infinity), known.reduce((a, b) => Math.max(a, b), -Infinity)];
  };
  const [low, high] = ends(others);
  const [lowest] = ends([threshold]);
  if (!(high > 0 && lowest > FAR * high)) return spec;
  const room = 0.05 * (high - low || high);
  const note = `The ${STABILITY}, ${brief(lowest)} or more, is above this chart.`;
  return { ...spec, note: [spec.note, note].filter(Boolean).join(" "), rangeY: () => [low - room, high + room] };
}
