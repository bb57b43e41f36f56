// Sections that are nothing but charts of the guide: titles, tags and meanings come from the server.

import { ChartGrid } from "./grid.js";
import { layerMap } from "./layermap.js";
import { allTags, isKept, isMapped, layerColors } from "./layernames.js";
import { axisLabel, layerName, naturally, unshared } from "./names.js";
import { plainTags } from "./seeds.js";
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
    const tags = this.charts.flatMap((chart) => this.tagsOf(chart));
    return [...new Set([...tags, ...tags.map(theoryOf)])];
  }

  isFor(tags) {
    const plain = plainTags(tags);
    return this.charts.some((chart) => plain.some((tag) => isOf(chart, tag)));
  }

  draw() {
    this.used = new Set();
    this.grid.show(this.charts.flatMap((chart) => this.chart(chart)));
  }

  /** Returns the tags of a chart that any selected run has, in natural order. */
  tagsOf(chart) {
    const all = new Set(allTags(this.app));
    const isTheory = (tag) => THEORY.test(tag) && all.has(tag.replace(THEORY, "/")); // circles on the measured line
    const isShown = (tag) => chart.margin || (!isTheory(tag) && isKept(this.app, restOf(chart, tag)));
    return [...all].filter((tag) => isOf(chart, tag) && isShown(tag)).sort(naturally);
  }

  chart(chart) {
    const tags = this.tagsOf(chart);
    if (!tags.length) return [];
    const { unit, meaning } = this.app.explained(tags[0]);
    const isRank = unit === "count" && /^rank|\/rank/.test(tags[0]);
    const look = { title: chart.title, left: isRank ? "rank" : axisLabel(unit), fromZero: unit === "count", height: 240, help: meaning };
    const stale = { ...look, isStale: isRank && !this.app.isAtCut() };
    const quantities = chart.margin ? [this.banded(chart)] : this.lines(chart, tags);
    const id = this.idOf(tags[0]);
    if (isMapped(this.app, quantities.length)) return [[id, layerMap(this.app, stale, quantities)]];
    return this.app.charts(id, stale, quantities);
  }

  /** Returns an id that no other chart of the section has: its tag's family, or else the whole tag. */
  idOf(tag) {
    const family = tag.split("/").slice(0, -1).join("-");
    const id = !family || this.used.has(family) ? tag.replaceAll("/", "-") : family;
    this.used.add(id);
    return id;
  }

  /** Returns a line with a band. */
  banded({ title, margin: [value, low, high] }) {
    const of = (tag) => (run) => this.app.series(run, tag);
    const margin = (run) => ({ low: of(low)(run), high: of(high)(run) });
    return { id: value, label: title.split(",")[0], color: lineColor(0), of: of(value), margin };
  }

  lines(chart, tags) {
    const families = new Set(tags.map((tag) => tag.slice(0, -restOf(chart, tag).length || undefined)));
    const place = (tag) => (families.size === 1 ? restOf(chart, tag) : tag);
    const names = unshared(tags.map(place));
    const colors = layerColors(this.app, tags.map(place));
    const isAlone = tags.length === 1 && place(tags[0]) === tags[0]; // the title says what it is
    return tags.map((tag, at) => ({
      id: place(tag),
      short: isAlone ? "value" : undefined,
      label: isAlone ? chart.title : layerName(names[at].replace(/^_/, "")), // of nc2_means and nc2_classifier
      color: colors[at],
      of: (run) => this.app.series(run, tag),
      margin: (run) => this.app.range(run, tag),
      theory: (run) => this.app.series(run, theoryOf(tag)),
    }));
  }
}

const theoryOf = (tag) => tag.replace("/", "_theory/");

/** Returns the layer that a tag is about: what the chart's pattern leaves of it; the tag if it leaves nothing. */
function restOf({ patterns }, tag) {
  const pattern = patterns.find((one) => one.test(tag));
  return tag.replace(pattern, "") || tag;
}

const isOf = ({ patterns, margin }, tag) =>
  margin ? margin.includes(tag) : !BANDS.test(tag) && patterns.some((pattern) => pattern.test(tag));
