// The tab: it keeps the selected runs and settings, fetches data, and contains the sections.

import { Axis, STEP, TIME } from "./axis.js";
import { Chart } from "./chart.js";
import { CurvatureSection } from "./curvature.js";
import { element } from "./dom.js";
import { evolution } from "./evolution.js";
import { GuidedSection } from "./guided.js";
import { HessianSection } from "./hessian.js";
import { LayersSection } from "./layers.js";
import { Lemma8Section } from "./lemma8.js";
import { NotesSection } from "./notes.js";
import { LOGGED, recounted } from "./recount.js";
import { RunList } from "./runlist.js";
import { hiddenAtFirst } from "./selection.js";
import { offerPdf } from "./savemenu.js";
import { SpectrumSection } from "./spectrum.js";
import { isSummary } from "./seeds.js";
import { OverviewSection, RESTING_MS } from "./overview.js";
import { link, remember, remembered } from "./state.js";
import { isDark, onHostTheme } from "./theme.js";
import { Toolbar } from "./toolbar.js";
import { DeterminantsSection, WeightsSection } from "./weights.js";

const FIRST_SECTIONS = [
  OverviewSection,
  HessianSection,
  WeightsSection,
  DeterminantsSection,
  SpectrumSection,
  CurvatureSection,
  Lemma8Section,
];
const LAST_SECTIONS = [LayersSection, NotesSection];
const RANKS = /^rank(_weights)?\//;
const POLL_SECONDS = 10;
const NEAR_PIXELS = 300;
const NEAR = { rootMargin: `${NEAR_PIXELS}px` };
/** Loop of the empty page; a test runs it. */
export const NO_RUNS = `monitor = rankmon.RankMonitor(problem, logdir="logs/run_1", every=50)
for step in range(steps):
    params = train_step(params)
    monitor(step, params)`;

export class App {
  /**
   * @param {HTMLElement} host
   * @param {ReturnType<typeof import("./source.js").fetched>} source
   */
  constructor(host, source) {
    this.source = source;
    const { runs, cut, step, ...state } = remembered();
    this.state = state;
    this.toShow = runs; // of a link
    this.position = Number.isInteger(cut) ? cut : LOGGED;
    this.step = step;
    this.all = [];
    this.runs = [];
    this.scalars = new Map();
    this.reading = 0;
    this.busy = 0; // actions that have not ended; tests wait for them
    this.have = new Map();
    this.texts = new Map();
    this.counts = new Map();
    this.countedTo = new Map();
    this.counting = new Map();
    this.axis = new Axis();
    this.timesTo = new Map();
    this.runList = new RunList((hidden) => this.choose({ hidden }), (colorBy) => this.choose({ colorBy }));
    this.status = element("span", { class: "status", role: "status", "data-testid": "status" });
    this.toolbar = new Toolbar(this);
    this.empty = element("div", { class: "empty", hidden: true });
    this.near = new Set();
    this.approaching = new IntersectionObserver((entries) => this.approached(entries), NEAR);
    this.sections = [];
    this.main = element("main", {}, element("h1", {}, "Ranks"), this.toolbar.host, this.empty);
    document.documentElement.lang = "en";
    document.title ||= "Ranks";
    host.append(element("div", { class: "rankmon", "data-testid": "rankmon" }, this.runList.host, this.main));
    window.rankmonCharts = Chart.all;
    window.rankmonApp = this;
  }

  async start() {
    this.toolbar.make();
    this.applyTheme();
    onHostTheme(() => this.applyTheme());
    await this.reported(() => this.makeSections());
    await this.refresh();
    if (!this.source.isLive) return;
    setInterval(() => document.visibilityState === "visible" && this.refresh(), POLL_SECONDS * 1000);
  }

  async makeSections() {
    this.guide = await this.source.guide();
    if (this.guide.pdf) offerPdf((svg) => this.reported(() => this.source.pdf(svg), "Not saved"));
    const guided = this.guide.sections.map((section) => new GuidedSection(this, section));
    const [first, last] = [FIRST_SECTIONS, LAST_SECTIONS].map((all) => all.map((Section) => new Section(this)));
    this.sections = [...first, ...guided, ...last].map((section) => this.mounted(section));
    this.main.append(...this.sections.map(({ box }) => box));
    this.legend = this.guide.legend.map(({ tags, ...entry }) => ({ ...entry, patterns: tags.map(whole) }));
  }

  /** Returns unit and meaning of a tag, from the legend; empty texts if it is not known. */
  explained(tag) {
    const found = this.legend.find(({ patterns }) => patterns.some((pattern) => pattern.test(tag)));
    return found ?? { unit: "value", meaning: "" };
  }

  mounted(section) {
    const open = !this.state.closed.includes(section.id);
    const summary = element("summary", {}, element("h2", {}, section.title));
    const attributes = { class: "section", open, hidden: true, "data-testid": `section-${section.id}` };
    const box = element("details", attributes, summary, section.host);
    box.addEventListener("toggle", () => this.toggled(section, box.open));
    this.approaching.observe(box);
    return { section, box };
  }

  toggled(section, isOpen) {
    const others = this.state.closed.filter((id) => id !== section.id);
    this.state.closed = isOpen ? others : [...others, section.id];
    remember(this.state);
    if (isOpen) this.reported(() => this.update());
  }

  /** Returns a series of a run, if it was logged; the median if the run is a summary of seeds. */
  series(run, tag) {
    const own = this.scalars.get(run);
    return own?.[tag] ?? own?.[`${tag}/median`];
  }

  /** Returns the range over the seeds, if the run is a summary of seeds, or over its probe batches. */
  range(run, tag) {
    const own = this.scalars.get(run);
    const end = (name) => own?.[`${tag}/${name}`] ?? own?.[`batches/${tag}/${name}`];
    return { low: end("low"), high: end("high") };
  }

  /** Returns the rank of a part and its margin: as logged, or recounted if the cut was moved. */
  ranks(run, part) {
    if (this.position !== LOGGED) return recounted(this.counts.get(run), part, this.position);
    const rank = this.series(run, `rank/${part}`);
    const margin = [this.series(run, `rank_low/${part}`), this.series(run, `rank_high/${part}`)];
    const range = this.range(run, `rank/${part}`);
    return rank ? { rank, low: range.low ?? margin[0], high: range.high ?? margin[1] } : null;
  }

  /** Returns the rank of a weight, recounted if the cut was moved and its singular values are logged. */
  weightRank(run, layer) {
    const counted = this.position === LOGGED ? null : recounted(this.counts.get(run), layer, this.position);
    return counted?.rank ?? this.series(run, `rank_weights/${layer}`);
  }

  /** Returns whether the ranks of this weight, or of everything without spectra, are at the moved cut. */
  isAtCut(layer) {
    if (this.position === LOGGED) return true;
    const isCounted = ({ name }) => Boolean(this.counts.get(name)?.parts[layer]);
    return layer !== undefined && this.runs.every(isCounted);
  }

  /** Returns charts of quantities over the chosen axis, of the selected runs or of some of them. */
  charts(id, look, quantities, runs = this.runs) {
    const { logX, median, axis } = this.state;
    const along = (run, series) => this.along(run, series);
    return evolution(id, { x: axis, logX: logX && axis === STEP, along, ...look }, quantities, runs, median);
  }

  /** Returns a run's series over the chosen axis. */
  along(run, series) {
    return this.axis.along(this.state.axis, run, this.lastStep(run), series);
  }

  /** Returns all tags of a run's scalars. */
  tags(run) {
    return this.all.find(({ name }) => name === run)?.scalars ?? [];
  }

  /** Returns the last fetched step of a run's ranks. */
  lastStep(run) {
    const own = Object.entries(this.scalars.get(run) ?? {});
    return Math.max(...own.filter(([tag]) => RANKS.test(tag)).map(([, { steps }]) => steps.at(-1) ?? -1));
  }

  /** Changes the settings, stores them, and updates the page. */
  choose(changes) {
    Object.assign(this.state, changes);
    remember(this.state);
    this.toolbar.showChoices();
    return this.reported(() => this.update());
  }

  /** Fetches the list of runs, and their new data. */
  refresh() {
    return this.reported(async () => {
      this.all = await this.source.runs();
      this.selectAtFirst();
      this.reading += 1;
      const now = new Date().toLocaleTimeString([], { timeStyle: "short" });
      this.status.textContent = this.source.isLive ? `Read at ${now}` : "";
      this.status.classList.remove("error"); // before the update, which may report a new error
      await this.update();
    });
  }

  /** Selects few runs of a log folder that this browser tab has not shown before. */
  selectAtFirst() {
    const names = this.all.map(({ name }) => name);
    const isNew = !names.some((name) => this.state.seen.includes(name));
    if (this.toShow && names.length) {
      this.state.hidden = names.filter((name) => !this.toShow.includes(name));
      this.toShow = null;
    } else if (isNew) this.state.hidden = hiddenAtFirst(this.all);
    this.state.seen = names;
    remember(this.state);
  }

  /** Puts what is shown into the page's address. */
  link() {
    clearTimeout(this.linking);
    this.linking = null;
    const runs = this.all.length ? this.all.map(({ name }) => name).filter((n) => !this.state.hidden.includes(n)) : undefined;
    link(this.state, { runs, cut: this.position === LOGGED ? undefined : this.position, step: this.step });
  }

  /** Runs an action that may send requests, and returns its result; if it fails, shows the error. */
  async reported(action, what = "Not updated") {
    this.busy += 1;
    try {
      return await action();
    } catch (error) {
      this.status.textContent = `${what}: ${error.message}`;
      this.status.classList.add("error");
    } finally {
      this.busy -= 1;
    }
  }

  /** Fetches missing data of the selected runs for each visible section in turn, and draws it. */
  async update() {
    this.runs = this.selected();
    if (this.state.axis === TIME) await this.fetchTimes();
    this.toolbar.showFor(this.runs);
    this.showEmptiness();
    for (const { section, box } of this.sections) {
      box.hidden = !this.runs.some((run) => section.isFor(run.scalars, run.texts, run.spectra));
    }
    for (const { section, box } of this.sections) {
      if (!isNear(box)) continue;
      await this.fetch(section);
      await this.fetch(section); // a section may need more once it has data
      if (!this.runs.length) return; // the last run was hidden meanwhile
      section.draw();
    }
    this.toolbar.describeCut();
    this.link();
    if (this.position !== LOGGED) await this.recount();
    else this.later ??= setTimeout(() => this.reported(() => this.fetchTheRest()), 200);
  }

  /** Lists all runs, and returns the selected ones with their colors. */
  selected() {
    return withoutSummaries(this.runList.show(this.all, this.state.hidden, this.state.colorBy));
  }

  /** Fetches the scalars that a section needs, unless they were fetched since the last refresh. */
  async fetch({ id, prefixes }) {
    const names = this.runs.map(({ name }) => name);
    const key = JSON.stringify([this.reading, names, prefixes]);
    if (!names.length || !prefixes.length || this.have.get(id) === key) return;
    this.have.set(id, key);
    for (const [name, own] of Object.entries(await this.source.scalars(names, prefixes))) {
      this.scalars.set(name, { ...this.scalars.get(name), ...own });
    }
  }

  /** Fetches the times of the records of the selected runs, if they have new ones. */
  async fetchTimes() {
    for (const { name, latest } of this.runs) {
      if (this.timesTo.get(name) === latest) continue;
      this.axis.setTimes(name, await this.source.times(name));
      this.timesTo.set(name, latest);
    }
  }

  /** Fetches data that is not needed at once: texts, and the counts for the slider. */
  async fetchTheRest() {
    this.later = null;
    for (const { name, texts } of this.runs) {
      if (texts.length) this.texts.set(name, await this.source.texts(name));
    }
    this.runList.showAlerts(this.texts);
    this.toolbar.showFor(this.runs); // cards have the number of parameters
    this.draw("notes", "overview", ...(this.state.share ? ["ranks"] : []));
    await this.fetchCounts();
  }

  /** Fetches counts for the slider, for runs whose counts are older than their ranks. */
  async fetchCounts() {
    for (const { name, spectra, weights } of this.runs) {
      const last = this.lastStep(name);
      if (!(spectra.length || weights.length) || this.countedTo.get(name) === last) continue;
      const counts = await this.countsTo(name, last);
      this.counts.set(name, counts);
      this.countedTo.set(name, lastCounted(counts)); // the server may not have read all spectra yet
    }
  }

  /** Requests counts once, even if several moves of the slider wait for them. */
  countsTo(name, last) {
    const key = JSON.stringify([name, last]);
    if (!this.counting.has(key)) {
      const answer = this.source.counts(name).finally(() => this.counting.delete(key));
      this.counting.set(key, answer);
    }
    return this.counting.get(key);
  }

  /** Draws the sections with these ids that are open. */
  draw(...ids) {
    if (!this.runs.length) return;
    for (const { section, box } of this.sections) {
      if (ids.includes(section.id) && box.open && !box.hidden) section.draw();
    }
  }

  /** Notes which sections are near the visible part of the page, and draws those that have come near. */
  approached(entries) {
    for (const { target, isIntersecting } of entries) this.near[isIntersecting ? "add" : "delete"](target);
    if (this.all.length) this.reported(() => this.update());
  }

  /** Draws the visible sections that depend on the cut; others are drawn when they become visible. */
  drawAtCut() {
    for (const { section, box } of this.sections) {
      // As last observed: to ask where each box is now would lay out the whole page at each step.
      if (section.followsCut && box.open && !box.hidden && this.near.has(box)) (section.drawLater ?? section.draw).call(section);
    }
  }

  /** Moves the cut, and recounts the ranks of all logged spectra. */
  async moveCut(position) {
    this.position = position;
    this.toolbar.describeCut();
    const isToCount = ({ name, spectra, weights }) => (spectra.length || weights.length) && !this.counts.has(name);
    if (this.runs.some(isToCount)) {
      this.toolbar.cutLabel.append(" (counting)");
      await this.fetchCounts().finally(() => this.toolbar.describeCut());
    }
    this.drawAtCut();
    clearTimeout(this.linking); // browsers allow few changes of the address
    this.linking = setTimeout(() => this.link(), RESTING_MS);
  }

  /** Fetches counts of new spectra, and draws the ranks at the moved cut. */
  async recount() {
    await this.fetchCounts();
    this.drawAtCut();
  }

  showEmptiness() {
    this.empty.hidden = this.runs.length > 0;
    if (this.runs.length) return;
    const words = this.all.length
      ? [element("p", {}, "No run is selected. Select one or more in the list of runs.")]
      : [
          element("p", {}, "No run in this log folder has ranks yet. To log them, add three lines to the training loop:"),
          element("pre", {}, NO_RUNS),
        ];
    this.empty.replaceChildren(...words);
  }

  applyTheme() {
    document.documentElement.dataset.theme = isDark(this.state.theme) ? "dark" : "light";
    if (this.all.length) this.runs = this.selected();
    this.draw(...this.sections.map(({ section }) => section.id));
    for (const chart of Chart.all.values()) if (chart.uplot) chart.rebuild();
  }
}

/** Leaves out runs that are summaries of seeds, unless no other run is selected. */
function withoutSummaries(runs) {
  const members = runs.filter(({ scalars }) => !isSummary(scalars));
  return members.length ? members : runs;
}

const whole = (pattern) => new RegExp(`^(?:${pattern})$`, "s");

const lastCounted = ({ parts }) => Math.max(...Object.values(parts).map(({ steps }) => steps.at(-1) ?? -1));

/** Returns whether a section is open and visible or nearly visible. */
function isNear(box) {
  if (!box.open || box.hidden) return false;
  const { top, bottom } = box.getBoundingClientRect();
  return top < window.innerHeight + NEAR_PIXELS && bottom > -NEAR_PIXELS;
}
