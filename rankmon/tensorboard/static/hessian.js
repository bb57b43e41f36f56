// The section of the Hessian's ranks, drawn as in figure S1, at the cut that the slider sets.

import { ChartGrid } from "./grid.js";
import { element } from "./dom.js";
import { divided, parametersByRun } from "./perparameter.js";
import { LOGGED } from "./recount.js";
import { ink, partLook, partName, PARTS } from "./theme.js";

// What is no prediction: an upper bound, and the closed form of the same layers without activations.
const REFERENCES = [
  { prefix: "rank_bound", name: "upper bound", dash: [7, 4] },
  { prefix: "rank_landmark", name: "linear counterpart", dash: [2, 4] },
];

const MARGIN = "rank at 10 times and at a tenth of the cut, or its known bounds";

const SPREAD = ["Ranks: median", "lowest to highest of the probe batches or seeds"];

export class HessianSection {
  id = "ranks";
  title = "Ranks of the loss Hessian";
  followsCut = true;

  constructor(app) {
    this.app = app;
    this.note = element("p", { class: "note", role: "status" });
    this.wide = new ChartGrid("wide");
    this.host = element("div", {}, this.note, this.wide.host);
  }

  /** The tags to fetch; of several runs, margins are drawn only if they bound unknown ranks. */
  get prefixes() {
    const needed = this.app.runs.length === 1 || this.hasUnknownRanks();
    const margins = needed ? ["rank_low/H_", "rank_high/H_", "batches/rank/H_"] : [];
    const references = ["rank_landmark/", "rank_bound/H_o"];
    return ["rank/H_", "rank_theory/", ...references, "loss", "tolerance/H_L", ...margins];
  }

  hasUnknownRanks() {
    const isUnknown = (run, part) => this.app.series(run, `rank/${part}`)?.values.some(Number.isNaN);
    return this.app.runs.some(({ name }) => PARTS.some((part) => isUnknown(name, part)));
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("rank/H_"));
  }

  draw() {
    const { runs, state } = this.app;
    this.ranks = new Map(
      runs.map(({ name }) => [name, new Map(PARTS.map((part) => [part, this.app.ranks(name, part)]))]),
    );
    const quantities = PARTS.map((part) => this.quantity(part));
    this.parameters = parametersByRun(this.app);
    const left = this.parameters ? "rank / p" : "rank";
    const isSpread = runs.length === 1 && this.app.position === LOGGED && this.app.range(runs[0].name, "rank/H_L").low;
    const [title, band] = isSpread ? SPREAD : ["Ranks", MARGIN];
    const look = { title, left, fromZero: true, height: 340, band };
    this.wide.columns.classList.toggle("wide", runs.length === 1 || state.median);
    this.wide.show([
      ...this.app.charts("ranks", this.withLoss(look), quantities),
      ...(runs.length === 1 ? [] : this.lossCharts()),
    ]);
    this.note.textContent = this.whatIsMissing();
  }

  quantity(part) {
    const at = (run) => this.ranks.get(run).get(part);
    const scaled = (run, series) => (this.parameters ? divided(series, this.parameters.get(run)) : series);
    const margin = (run) => ({ low: scaled(run, at(run)?.low), high: scaled(run, at(run)?.high) });
    return {
      id: part,
      label: partName(part),
      ...partLook(part),
      help: this.app.explained(`rank/${part}`).meaning,
      of: (run) => scaled(run, at(run)?.rank),
      margin,
      theory: (run) => scaled(run, this.app.series(run, `rank_theory/${part}`)),
      isOld: this.app.position !== LOGGED, // theory counts at the logged cut
      references: part === "H_f_fixed" ? [] : REFERENCES.map(({ prefix, ...look }) => ({
        ...look,
        of: (run) => scaled(run, this.app.series(run, `${prefix}/${part}`)),
      })),
    };
  }

  /** Adds the loss on a separate axis on the right. */
  withLoss(look) {
    const [{ name }] = this.app.runs;
    const loss = this.app.series(name, "loss");
    if (!loss) return look;
    const line = { label: "loss", color: ink().muted, width: 1.5, right: true, ...this.app.along(name, loss) };
    return { ...look, right: "loss", rightLog: true, rightLines: [line] };
  }

  lossCharts() {
    const { runs } = this.app;
    const loss = { id: "loss", label: "Loss", color: ink().text };
    const quantity = { ...loss, of: (run) => this.app.series(run, "loss") };
    if (!runs.some(({ name }) => quantity.of(name))) return [];
    const look = { title: "Loss", left: "loss", leftLog: true, height: 340 };
    return this.app.charts("runs", look, [quantity]);
  }

  whatIsMissing() {
    const { runs, counts, position } = this.app;
    if (position === LOGGED) return "";
    const without = runs.filter(({ name }) => {
      const logged = this.app.tags(name).some((tag) => tag.startsWith("rank/H_"));
      return logged && counts.has(name) && ![...this.ranks.get(name).values()].some(Boolean);
    });
    if (!without.length) return "";
    const names = without.map(({ name }) => name).join(", ");
    return `Not recomputed, because the log has no spectra or cuts (tolerance/…): ${names}`;
  }
}
