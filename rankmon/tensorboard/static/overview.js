// The table on top: for each selected run its last ranks, whether they meet theory, sharpness and alerts.

import { element } from "./dom.js";
import { interval } from "./bounds.js";
import { counted, listed } from "./names.js";
import { rich } from "./richtext.js";
import { partName, PARTS } from "./theme.js";
import { brief, shown } from "./values.js";

const SHARPNESS = "eigenvalue_max/H_L";
const [LOWEST, HIGHEST] = ["low", "high"].map((end) => `interval_${end}/${SHARPNESS}`);

/** The slider rests after this time without a move. */
export const RESTING_MS = 150;

export class OverviewSection {
  id = "overview";
  title = "Now";
  followsCut = true;
  prefixes = ["rank/H_", "rank_low/H_", "rank_high/H_", "rank_theory/", "loss", SHARPNESS, LOWEST, HIGHEST];

  constructor(app) {
    this.app = app;
    this.table = element("table", { class: "facts" });
    this.host = element("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": "last values" }, this.table);
  }

  isFor(tags) {
    return tags.some((tag) => tag.startsWith("rank/H_"));
  }

  /** Draws the table once the slider rests: a table of many runs takes longer than its steps. */
  drawLater() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.draw(), RESTING_MS);
  }

  draw() {
    const runs = this.app.runs.filter(({ scalars }) => this.isFor(scalars));
    const parts = PARTS.filter((part) => runs.some(({ name }) => this.app.series(name, `rank/${part}`)));
    const ranks = parts.map((part) => `rank\u00a0${partName(part)}`);
    const isSharp = runs.some(({ name }) => this.app.series(name, SHARPNESS));
    const numbers = ["step", ...ranks];
    const ends = [...(isSharp ? ["largest eigenvalue of H_L"] : []), "loss"];
    const head = (kind, ...texts) => texts.map((text) => element("th", { scope: "col", class: kind }, ...rich(text)));
    const heads = [...head("", "run"), ...head("number", ...numbers), ...head("wide", "equal to theory?"), ...head("number", ...ends), ...head("", "alerts")];
    const rows = runs.map((run) => this.row(run, parts, isSharp));
    this.table.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  }

  row({ name, color }, parts, isSharp) {
    const dot = element("span", { class: "dot" });
    dot.style.background = color;
    const cell = (words, kind) => element("td", kind ? { class: kind } : {}, words);
    const number = (words) => cell(words, "number");
    const now = (tag) => brief(last(this.app.series(name, tag)));
    const alerts = this.app.texts.get(name)?.["rankmon/alerts"]?.length ?? 0;
    return element(
      "tr",
      { "data-testid": `overview-${name}` },
      element("th", { scope: "row" }, element("span", { class: "run" }, dot, element("span", { class: "name" }, name))),
      number(String(this.app.lastStep(name))),
      ...parts.map((part) => number(this.rank(name, part))),
      this.verdict(name, parts),
      ...(isSharp ? [number(this.sharpness(name))] : []),
      number(now("loss")),
      cell(alerts ? counted(alerts, "alert") : "none", alerts ? "unmet" : ""),
    );
  }

  /** Returns the last rank as a text, or its bounds if only these are known. */
  rank(run, part) {
    const { rank, low, high } = this.app.ranks(run, part) ?? {};
    const value = last(rank);
    if (value === null && [low, high].every((one) => Number.isFinite(last(one)))) return interval(last(low), last(high));
    return shown(value);
  }

  /** Returns the largest eigenvalue of H_L as a text, or its interval if only this is known. */
  sharpness(run) {
    const [one, ...ends] = [SHARPNESS, LOWEST, HIGHEST].map((tag) => this.app.series(run, tag));
    const [value, low, high] = [one, ...ends].map(last);
    const isNow = ends.every((end) => end?.steps.at(-1) === one?.steps.at(-1));
    const isBounded = value === null && isNow && [low, high].every(Number.isFinite);
    return isBounded ? `${short(low)} … ${short(high)}` : brief(value);
  }

  /** Returns a cell that says whether the last ranks equal theory; of a moved cut, nothing. */
  verdict(run, parts) {
    const theory = (part) => last(this.app.series(run, `rank_theory/${part}`));
    const measured = (part) => last(this.app.ranks(run, part)?.rank);
    const known = parts.filter((part) => [theory(part), measured(part)].every(Number.isFinite));
    if (!known.length) return element("td", {}, "–");
    const missed = known.filter((part) => measured(part) !== theory(part));
    if (!missed.length) {
      const some = known.length < parts.length ? ` for ${listed(known.map(partName))}` : "";
      return element("td", { class: "met" }, ...rich(`✓ met${some}`));
    }
    const words = missed.flatMap((part, at) => rich(`${at ? "; " : "✗ predicted: "}${partName(part)} ${theory(part)}`));
    return element("td", { class: "unmet", title: "The predicted ranks that differ from the measured ones" }, ...words);
  }
}

/** Formats an end of an interval: two digits say how wide it is. */
const short = (value) => String(Number(value.toPrecision(2)));

/** Returns the last value of a series; null if it is not finite, undefined without a series. */
function last(series) {
  const value = series?.values.at(-1);
  return value === undefined || Number.isFinite(value) ? value : null;
}
