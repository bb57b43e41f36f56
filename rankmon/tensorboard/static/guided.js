// Sections that are nothing but charts of the guide: titles, tags and meanings come from the server.

import { ChartGrid } from "./grid.js";
import { layerMap } from "./layermap.js";
import { allTags, isKept, isMapped, unshared } from "./layernames.js";
import { layerName, naturally } from "./names.js";
import { isSummary, summarized } from "./seeds.js";
import { lineColor } from "./theme.js";

const THEORY = /_theory\//;
const BANDS = /^(rank_low|rank_high|gap|tolerance|interval_low|interval_high)\//;

export class GuidedSection {
  followsCut = true;

  /** @param {{title: string, charts: {title: string, tags?: string[], margin?: string[]}[]}} of the guide */
  constructor(app, { title, charts }) {
    this.app = app;
    this.id = title.toLowerCase().replaceAll(/\W+/g, "-");
    this.title = title;
    this.charts = charts.map((chart) => ({ ...chart, patterns: (chart.tags ?? []).map((tag) => new RegExp(tag, "s")) }));
    this.grid = new ChartGrid("medium");
    this.host = this.grid.host;
  }

  /** The tags to fetch: those of the selected runs that the section draws. */
  get prefixes() {
    return [...new Set(this.charts.flatMap((chart) => this.tagsOf(chart)))];
  }

  isFor(tags) {
    const plain = isSummary(tags) ? tags.map(summarized) : tags;
    return this.charts.some((chart) => plain.some((tag) => isOf(chart, tag)));
  }

  draw() {
    this.grid.show(this.charts.flatMap((chart) => this.chart(chart)));
  }

  /** Returns the tags of a chart that any selected run has, in natural order. */
  tagsOf(chart) {
    const isShown = (tag) => isOf(chart, tag) && (chart.margin || isKept(this.app, restOf(chart, tag)));
    return allTags(this.app).filter(isShown).sort(naturally);
  }

  chart(chart) {
    const tags = this.tagsOf(chart);
    if (!tags.length) return [];
    const { unit, meaning } = this.app.explained(tags[0]);
    const isRank = unit === "count" && /^rank|\/rank/.test(tags[0]);
    const look = { title: chart.title, left: unit, fromZero: unit === "count", height: 240, help: meaning };
    const stale = { ...look, isStale: isRank && !this.app.isAtCut() };
    const quantities = chart.margin ? [this.banded(chart)] : this.lines(chart, tags);
    const id = tags[0].split("/").slice(0, -1).join("-") || tags[0];
    if (isMapped(this.app, quantities.length)) return [[id, layerMap(this.app, stale, quantities)]];
    return this.app.charts(id, stale, quantities);
  }

  /** Returns a line with a band. */
  banded({ title, margin: [value, low, high] }) {
    const of = (tag) => (run) => this.app.series(run, tag);
    const margin = (run) => ({ low: of(low)(run), high: of(high)(run) });
    return { id: value, label: title.split(",")[0], color: lineColor(0), of: of(value), margin };
  }

  lines(chart, tags) {
    const measured = tags.filter((tag) => !THEORY.test(tag) || !tags.includes(tag.replace("_theory/", "/")));
    const families = new Set(measured.map((tag) => tag.slice(0, -restOf(chart, tag).length || undefined)));
    const place = (tag) => (families.size === 1 ? restOf(chart, tag) : tag);
    const names = unshared(measured.map(place));
    return measured.map((tag, at) => {
      const theory = tag.replace("/", "_theory/");
      return {
        id: place(tag),
        label: layerName(names[at]),
        color: measured.length === 1 ? lineColor(0) : lineColor(at),
        of: (run) => this.app.series(run, tag),
        margin: (run) => this.app.range(run, tag),
        theory: tags.includes(theory) ? (run) => this.app.series(run, theory) : undefined,
      };
    });
  }
}

/** Returns the layer that a tag is about: what the chart's pattern leaves of it; the tag if it leaves nothing. */
function restOf({ patterns }, tag) {
  const pattern = patterns.find((one) => one.test(tag));
  return tag.replace(pattern, "") || tag;
}

const isOf = ({ patterns, margin }, tag) =>
  margin ? margin.includes(tag) : !BANDS.test(tag) && patterns.some((pattern) => pattern.test(tag));
