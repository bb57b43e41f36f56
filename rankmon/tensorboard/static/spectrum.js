// The section of the spectrum of one part, at the selected step and over all steps, with the cut.

import { ChartGrid } from "./grid.js";
import { shown } from "./values.js";
import { button, choice, element } from "./dom.js";
import { drawHeatMap, painted } from "./heatmap.js";
import { counted } from "./names.js";
import { factor } from "./recount.js";
import { faint, heatGradient, ink, lineColor, negativeColor, partColor, partName } from "./theme.js";

// The axis extends this far below the cut, where eigenvalues are rounding noise.
const NOISE_DECADES = 5;
const COUNTERPART = "linear counterpart";
const OUTLYING = 0.02; // share of the eigenvalues above the cut with the lowest color

export class SpectrumSection {
  id = "spectrum";
  title = "Spectrum";
  followsCut = true;
  prefixes = ["rank/H_", "rank_theory/", "rank_landmark/"];

  constructor(app) {
    this.app = app;
    this.controls = element("div", { class: "controls" });
    this.steps = element("input", {
      type: "range",
      min: 0,
      "data-testid": "spectrum-step",
      "aria-label": "step of the spectrum",
      oninput: () => this.app.reported(() => this.chooseStep(Number(this.steps.value))),
    });
    this.stepLabel = element("output");
    this.pinning = button("Pin", () => this.pin(), { "data-testid": "pin", title: "Keep this spectrum for comparison" });
    this.grid = new ChartGrid("medium");
    this.host = element("div", {}, this.controls, this.grid.host);
    this.loaded = "";
  }

  isFor(_, __, spectra) {
    return spectra.length > 0;
  }

  /** Draws the charts; fetches their data first if the selection has changed. */
  async draw() {
    const runs = this.app.runs.filter(({ spectra }) => spectra.length);
    const run = runs.find(({ name }) => name === this.app.state.run) ?? runs[0];
    if (!run) return;
    const part = run.spectra.includes(this.app.state.part) ? this.app.state.part : run.spectra[0];
    const last = this.app.lastStep(run.name);
    const wanted = JSON.stringify([run.name, part, last]);
    if (wanted !== this.loaded) {
      this.loaded = wanted;
      this.drawControls(runs, run, part);
      await this.app.reported(() => this.load(run.name, part));
    }
    this.drawCharts();
  }

  drawControls(runs, run, part) {
    const choose = (name) => (value) => this.app.choose({ [name]: value });
    this.controls.replaceChildren(
      choice("Run", runs.map(({ name }) => name), run.name, choose("run"), { "data-testid": "spectrum-run" }),
      choice("Part", run.spectra, part, choose("part"), { "data-testid": "spectrum-part" }),
      element("label", { class: "step" }, "Step ", this.steps, this.stepLabel),
      this.pinning,
    );
  }

  /** Fetches a part's heat map and spectrum; drops them if the selection has changed meanwhile. */
  async load(run, part) {
    const wanted = this.loaded;
    try {
      const follows = !this.map || this.at === this.map.logged.length - 1 || this.map.run !== run;
      const map = await this.app.source.heatmap(run, part);
      const last = map.logged.length - 1;
      const linked = map.logged.indexOf(this.app.step); // of a link, or chosen for another part
      const at = linked >= 0 ? linked : follows ? last : Math.min(this.at, last);
      const spectrum = await this.app.source.spectrum(run, part, map.logged[at]);
      if (this.loaded !== wanted) return;
      Object.assign(this, { map: { ...map, run, part }, at, spectrum, range: rangeOf(map), colors: colorsOf(map) });
      this.painted = painted(this.map, this.colors);
      this.steps.max = last;
      this.steps.value = at;
    } catch (error) {
      if (this.loaded === wanted) this.loaded = "";
      throw error;
    }
  }

  /** Keeps the spectrum that is shown, below those of other steps, parts and runs; or removes it. */
  pin() {
    const { run, part } = this.map;
    this.pinned = this.pinned ? null : { ...this.spectrum, run, part };
    this.pinning.textContent = this.pinned ? "Unpin" : "Pin";
    this.drawCharts();
  }

  async chooseStep(at) {
    this.at = at;
    const { run, part, logged } = this.map;
    this.app.step = at === logged.length - 1 ? undefined : logged[at];
    this.app.link();
    const found = await this.app.source.spectrum(run, part, logged[at]);
    if (this.at !== at || this.map.run !== run || this.map.part !== part) return; // the selection has changed
    this.spectrum = found;
    this.drawCharts();
  }

  drawCharts() {
    if (!this.spectrum) return;
    this.stepLabel.textContent = String(this.spectrum.step);
    this.grid.show([
      ["spectrum", this.spectrumChart()],
      ["heatmap", this.heatMapChart()],
    ]);
  }

  spectrumChart() {
    const { values, negative, step, cut, zeros } = this.spectrum;
    const { run, part } = this.map;
    const indices = values.map((_, at) => at + 1);
    const lines = [
      { label: "log10 |eigenvalue|", color: partColor(part) ?? lineColor(0), steps: indices, values, width: 2 },
    ];
    if (negative?.length) {
      const look = { label: "negative eigenvalues only", color: negativeColor(), dash: [5, 3], width: 2.5 };
      lines.push({ ...look, steps: negative.map((_, at) => at + 1), values: negative });
    }
    if (cut !== null && indices.length) {
      const moved = cut + Math.log10(factor(this.app.position));
      const level = indices.map(() => moved);
      lines.push({ label: "cut", color: ink().text, steps: indices, values: level, dash: [6, 4], width: 1.5 });
    }
    const theory = at(this.app.series(run, `rank_theory/${part}`), step);
    const landmark = at(this.app.series(run, `rank_landmark/${part}`), step);
    lines.push(...this.pinnedLines());
    const [low, high] = this.range;
    const room = (high - low) * 0.05;
    const small = cut === null ? 0 : (negative ?? []).filter((log) => log <= cut).length;
    const noise = small === negative?.length ? "all" : `${small} of them`;
    const counts = [
      ...(negative ? [`${negative.length} negative${small ? `, ${noise} below the cut` : ""}`] : []),
      ...(zeros ? [counted(zeros, "exact zero")] : []),
    ];
    const none = counts.length ? ` (${counts.join("; ")})` : "";
    return {
      title: `${run}: ${partName(part)} at step ${step}${none}`,
      left: "log10 |eigenvalue|",
      x: "index",
      height: 320,
      lines,
      rangeY: () => [low - room, high + room],
      over: (u) => {
        if (landmark !== undefined) drawRank(u, landmark, COUNTERPART, { dash: [1, 5], line: 1 });
        if (theory !== undefined) drawRank(u, theory, "theory", { dash: [2, 4], line: 0 });
      },
    };
  }

  /** Returns the lines of the pinned spectrum: all eigenvalues, and the negative ones. */
  pinnedLines() {
    if (!this.pinned) return [];
    const { run, part, step, values, negative } = this.pinned;
    const color = ink().muted;
    const name = `pinned: ${run === this.map.run ? "" : `${run}, `}${partName(part)} at step ${step}`;
    const line = (label, ys, look) => ({ label, color, steps: ys.map((_, i) => i + 1), values: ys, ...look });
    const all = line(name, values, { width: 1.5 });
    return negative?.length ? [all, line(`${name}, negative`, negative, { dash: [2, 3], width: 1.5 })] : [all];
  }

  /** Returns a text on a place of the heat map. */
  words(step, row) {
    const { steps, indices, values } = this.map;
    const value = values[step * indices.length + row];
    const what = Number.isNaN(value) ? "exactly zero or missing" : shown(Number(value.toFixed(3)));
    return `step ${steps[step]}, index ${indices[row] + 1}: log10 |eigenvalue| ${what}`;
  }

  heatMapChart() {
    const { run, part, steps, indices } = this.map;
    const [low, high] = this.colors;
    const least = this.range[0] < low ? " or less" : "";
    const rank = this.app.ranks(run, part)?.rank;
    const color = "#ffffff";
    const lines = [{ label: "rank at the cut", color, width: 2, steps, values: steps.map((s) => at(rank, s) ?? NaN) }];
    const theory = this.app.series(run, `rank_theory/${part}`);
    if (theory) {
      const values = steps.map((s) => at(theory, s) ?? NaN);
      lines.push({ label: "theory", color: "#8c0000", fill: "#ffffff", kind: "markers", steps, values });
    }
    const landmark = this.app.series(run, `rank_landmark/${part}`);
    if (landmark) {
      const values = steps.map((s) => at(landmark, s) ?? NaN);
      lines.push({ label: COUNTERPART, color: faint(color), dash: [2, 4], width: 1.5, steps, values, isReference: true });
    }
    return {
      title: `${run}: ${partName(part)} over steps`,
      left: "index",
      logX: this.app.state.logX,
      height: 320,
      lines,
      colors: { gradient: heatGradient(), low: `${low.toFixed(1)}${least}`, high: high.toFixed(1), unit: "log10 |eigenvalue|" },
      ground: "#277f8e", // of the color map, so that the white line is seen in the legend
      map: { steps, indices, first: 0, words: (step, row) => this.words(step, row) },
      rangeY: () => [0.5, (indices.at(-1) ?? 0) + 1.5],
      under: (u) => drawHeatMap(u, this.map, this.painted),
    };
  }
}

/** Returns the value at this step, if there is one. */
function at(series, step) {
  const where = series?.steps.indexOf(step) ?? -1;
  return where < 0 ? undefined : series.values[where];
}

/**
 * Draws a vertical line after as many eigenvalues as a rank.
 * @param {string} name what the rank is
 * @param {{dash: [number, number], line: number}} look the line of text, from the top, of the name
 */
function drawRank(u, rank, name, { dash, line }) {
  const x = u.valToPos(rank + 0.5, "x", true);
  const { left, top, width, height } = u.bbox;
  if (!(x >= left && x <= left + width)) return;
  const { ctx } = u;
  ctx.save();
  ctx.beginPath();
  const color = line ? ink().muted : ink().text;
  ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
  Object.assign(ctx, { strokeStyle: color, lineWidth: devicePixelRatio });
  ctx.moveTo(x, top);
  ctx.lineTo(x, top + height);
  ctx.stroke();
  const isRight = x > left + 0.7 * width;
  const font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  Object.assign(ctx, { fillStyle: color, font, textBaseline: "top", textAlign: isRight ? "right" : "left" });
  const y = top + (4 + 16 * line) * devicePixelRatio;
  ctx.fillText(`${name}: ${rank}`, x + (isRight ? -6 : 6) * devicePixelRatio, y);
  ctx.restore();
}

/**
 * Returns the range of the colors: nearly all eigenvalues above the cut. With the noise below it, which is
 * many decades lower, the others would all look alike.
 */
function colorsOf(map) {
  const width = map.indices.length;
  const above = map.values.filter((value, place) => value > (map.cut[Math.floor(place / width)] ?? -Infinity)).sort((a, b) => a - b);
  const [low, high] = [above[Math.floor(OUTLYING * above.length)], above.at(-1)];
  return low < high ? [low, high] : rangeOf(map);
}

/**
 * Returns the range of the axis: the smallest and largest log10 of all steps, so that it is the same at
 * each step. It does not extend far below the cuts, where there is only rounding noise.
 */
function rangeOf({ values, cut }) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const cuts = cut.filter(Number.isFinite);
  if (cuts.length) low = Math.max(low, Math.min(...cuts) - NOISE_DECADES);
  return low < high ? [low, high] : [-16, 0];
}
