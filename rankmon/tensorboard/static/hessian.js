// The section of the Hessian's ranks, drawn as in figure S1, at the cut that the slider sets.

import { evolution } from "./evolution.js";
import { ChartGrid } from "./grid.js";
import { element } from "./dom.js";
import { LOGGED } from "./recount.js";
import { ink, partColor, partName, PARTS } from "./theme.js";

// Wide lines are drawn first: if lines coincide, such as H_L and H_o at a minimum, both stay visible.
const LOOKS = {
  H_L: { width: 4.5 },
  H_o: { width: 2 },
  H_f: { width: 2 },
  H_f_fixed: { width: 2, dash: [8, 5] },
};

export class HessianSection {
  id = "ranks";
  title = "Ranks of the loss Hessian";

  constructor(app) {
    this.app = app;
    this.note = element("p", { class: "note", role: "status" });
    this.wide = new ChartGrid("wide");
    this.host = element("div", {}, this.note, this.wide.host);
  }

  /** The tags to fetch; of several runs, margins are drawn only if they bound unknown ranks. */
  get prefixes() {
    const needed = this.app.runs.length === 1 || this.hasUnknownRanks();
    const margins = needed ? ["rank_low/H_", "rank_high/H_"] : [];
    return ["rank/H_", "rank_theory/", "loss", ...margins];
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
    const look = { title: "Ranks", left: "rank", logX: state.logX, fromZero: true, height: 340 };
    this.wide.host.classList.toggle("wide", runs.length === 1 || state.median);
    this.wide.show([
      ...evolution("ranks", this.withLoss(look), quantities, runs, state.median),
      ...(runs.length === 1 ? [] : this.lossCharts()),
    ]);
    this.note.textContent = this.whatIsMissing();
  }

  quantity(part) {
    const at = (run) => this.ranks.get(run).get(part);
    return {
      id: part,
      label: partName(part),
      color: partColor(part),
      ...LOOKS[part],
      of: (run) => at(run)?.rank,
      margin: (run) => at(run) ?? {},
      theory: (run) => this.app.series(run, `rank_theory/${part}`),
    };
  }

  /** Adds the loss on a separate axis on the right. */
  withLoss(look) {
    const [{ name }] = this.app.runs;
    const loss = this.app.series(name, "loss");
    if (!loss) return look;
    const line = { label: "loss", color: ink().muted, width: 1.5, right: true, ...loss };
    return { ...look, right: "loss", rightLog: true, rightLines: [line] };
  }

  lossCharts() {
    const { runs, state } = this.app;
    const loss = { id: "loss", label: "Loss", color: ink().text };
    const quantity = { ...loss, of: (run) => this.app.series(run, "loss") };
    if (!runs.some(({ name }) => quantity.of(name))) return [];
    const look = { title: "Loss", left: "loss", leftLog: true, logX: state.logX, height: 340 };
    return evolution("runs", look, [quantity], runs, state.median);
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
