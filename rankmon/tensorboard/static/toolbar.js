// The toolbar: the cut, the axes, how several runs and many layers are shown, and the theme.

import { AXES, STEP, TIME } from "./axis.js";
import { button, checkbox, choice, element } from "./dom.js";
import { MOST_LINES } from "./layernames.js";
import { COUNT, parametersOf, SHARE } from "./perparameter.js";
import { factor, LOGGED } from "./recount.js";
import { rich } from "./richtext.js";

const WEIGHTS = "rank_weights/";
const [LINES, MEDIAN] = ["lines", "median and range"];
const THEMES = ["auto", "light", "dark"];

export class Toolbar {
  /** @param {import("./app.js").App} app whose settings the controls show and change */
  constructor(app) {
    this.app = app;
    this.host = element("div", { class: "toolbar" });
  }

  /** Shows the controls that apply to the selected runs. */
  showFor(runs) {
    this.spread.hidden = runs.length < 2;
    const isDeep = runs.some(({ scalars }) => scalars.filter((tag) => tag.startsWith(WEIGHTS)).length > MOST_LINES);
    this.layerFilter.hidden = this.split.hidden = !isDeep;
    this.sharing.hidden = !runs.length || !runs.every((run) => parametersOf(this.app, run));
  }

  describeCut() {
    const moved = this.app.position !== LOGGED;
    const logged = this.app.runs.length === 1 ? this.app.series(this.app.runs[0].name, "tolerance/H_L")?.values.at(-1) : undefined;
    const value = logged ? `: ${(logged * factor(this.app.position)).toExponential(1)} for H_L` : "";
    const exponent = (this.app.position - LOGGED) / 10;
    this.cutLabel.replaceChildren(...rich((moved ? `× 10^${exponent.toFixed(1)}` : "as logged") + value));
    this.cut.classList.toggle("moved", moved);
    this.cutReset.hidden = !moved;
  }

  /** Creates the controls once: replacing a control would interrupt a drag of the pointer. */
  make() {
    this.makeCut();
    const log = (logX) => this.app.choose({ logX });
    this.logSteps = checkbox("Log steps", false, log, { "data-testid": "log-steps" });
    const place = (axis) => this.app.choose({ axis });
    const axes = this.app.source.times ? AXES : AXES.filter((axis) => axis !== TIME);
    this.axes = choice("X axis", axes, STEP, place, { "data-testid": "axis" });
    const share = (chosen) => this.app.choose({ share: chosen === SHARE });
    this.sharing = choice("Ranks as", [COUNT, SHARE], COUNT, share, { "data-testid": "share" });
    const spread = (value) => this.app.choose({ median: value === MEDIAN });
    this.spread = choice("Several runs", [LINES, MEDIAN], LINES, spread, { "data-testid": "spread" });
    this.layerFilter = element("input", {
      type: "search",
      placeholder: "Filter layers",
      "aria-label": "filter layers",
      "data-testid": "layer-filter",
      oninput: () => this.app.choose({ layers: this.layerFilter.value }),
    });
    this.split = checkbox("One chart per layer", false, (split) => this.app.choose({ split }), { "data-testid": "split" });
    const dress = (theme) => {
      this.app.choose({ theme });
      this.app.applyTheme();
    };
    this.themes = choice("Theme", THEMES, "auto", dress, { "data-testid": "theme" });
    const reload = button("Reload", () => this.app.refresh(), { "data-testid": "reload" });
    reload.hidden = !this.app.source.isLive;
    this.host.append(this.cut, this.axes, this.logSteps, this.sharing, this.spread, this.layerFilter, this.split, this.themes, reload, this.app.status);
    this.showChoices();
  }

  showChoices() {
    const { logX, median, theme, axis, share, layers, split } = this.app.state;
    this.sharing.querySelector("select").value = share ? SHARE : COUNT;
    this.axes.querySelector("select").value = axis;
    this.logSteps.hidden = axis !== STEP;
    if (this.layerFilter !== document.activeElement) this.layerFilter.value = layers;
    this.split.querySelector("input").checked = split;
    this.logSteps.querySelector("input").checked = logX;
    this.spread.querySelector("select").value = median ? MEDIAN : LINES;
    this.themes.querySelector("select").value = theme;
  }

  makeCut() {
    const move = (position) => {
      slider.value = position;
      return this.app.reported(() => this.app.moveCut(position));
    };
    const slider = element("input", {
      type: "range",
      min: 0,
      max: 2 * LOGGED,
      value: this.app.position,
      list: "logged-cut",
      "data-testid": "cut",
      "aria-label": "cut below which eigenvalues count as zero",
      oninput: () => move(Number(slider.value)),
    });
    this.cutLabel = element("output", { "data-testid": "cut-label" });
    this.cutReset = button("Reset", () => move(LOGGED), { "data-testid": "cut-reset" });
    const help =
      "The cut below which eigenvalues and singular values count as zero; ranks are recomputed from the logged" +
      " spectra. Charts without spectra turn gray.";
    const mark = element("datalist", { id: "logged-cut" }, element("option", { value: LOGGED }));
    this.cut = element("div", { class: "cut", title: help }, "Cut ", slider, mark, this.cutLabel, this.cutReset);
    this.describeCut();
  }
}
