// The list of runs at the side, with search, selection and colors.

import { button, choice, element } from "./dom.js";
import { counted } from "./names.js";
import { byHparam, varying } from "./runcolors.js";
import { runColor } from "./theme.js";

const BY_NAME = "run";

export class RunList {
  /**
   * @param {(hidden: string[]) => void} onChange is called with the names of the hidden runs
   * @param {(name: string) => void} onColor is called with a hyperparameter; "" for colors by run
   */
  constructor(onChange, onColor) {
    this.onChange = onChange;
    this.onColor = onColor;
    this.coloring = element("div", { class: "coloring" });
    this.search = element("input", {
      type: "search",
      placeholder: "Filter runs",
      "aria-label": "filter runs",
      "data-testid": "run-search",
      oninput: () => this.filter(),
    });
    this.list = element("ul");
    this.rows = new Map();
    const buttons = element(
      "div",
      { class: "buttons" },
      button("All", () => this.setListed(true), { "data-testid": "runs-all" }),
      button("None", () => this.setListed(false), { "data-testid": "runs-none" }),
    );
    this.count = element("p", { class: "count", role: "status", "data-testid": "runs-count" });
    this.fold = button("Show", () => this.toggle(), { class: "fold", "aria-expanded": "false" });
    const foldable = element("div", { class: "foldable" }, this.search, buttons, this.count, this.coloring, this.list);
    this.host = element("aside", { "aria-label": "runs" }, this.fold, element("h2", {}, "Runs"), foldable);
  }

  /** Folds the list away, or shows it, on narrow pages. */
  toggle() {
    const isOpen = this.host.classList.toggle("open");
    this.fold.textContent = isOpen ? "Hide" : "Show";
    this.fold.setAttribute("aria-expanded", String(isOpen));
  }

  /** Lists all runs, and returns the selected ones with their colors: by run, or by a hyperparameter. */
  show(all, hidden, hparam) {
    this.hidden = new Set(hidden);
    const hparams = varying(all);
    const by = hparams.includes(hparam) ? hparam : "";
    const colors = by ? byHparam(all, by) : all.map((_, at) => runColor(at));
    const values = all.map((run) => (by ? String(run.hparams[by] ?? "–") : ""));
    const names = JSON.stringify([colors, values, hparams, all.map(({ name }) => name)]);
    if (names !== this.listed) {
      this.listed = names;
      this.showColoring(hparams, by);
      this.rows = new Map(all.map(({ name }, at) => [name, this.row(name, colors[at], values[at])]));
      this.list.replaceChildren(...this.rows.values());
      this.filter();
    }
    for (const [name, row] of this.rows) row.querySelector("input").checked = !this.hidden.has(name);
    const unselected = all.filter(({ name }) => this.hidden.has(name)).length;
    this.count.textContent = unselected ? `${all.length - unselected} of ${counted(all.length, "run")} shown` : "";
    return all
      .map((run, at) => ({ ...run, color: colors[at] }))
      .filter(({ name }) => !this.hidden.has(name));
  }

  /** Shows the choice of what the colors mean, if any hyperparameter differs between the runs. */
  showColoring(hparams, by) {
    const choose = (name) => this.onColor(name === BY_NAME ? "" : name);
    const options = [BY_NAME, ...hparams.filter((name) => name !== BY_NAME)];
    const isFocused = this.coloring.contains(document.activeElement);
    const list = hparams.length ? [choice("Color by", options, by || BY_NAME, choose, { "data-testid": "color-by" })] : [];
    this.coloring.replaceChildren(...list);
    if (isFocused) this.coloring.querySelector("select")?.focus();
  }

  row(name, color, value) {
    const input = element("input", { type: "checkbox", onchange: () => this.set([name], input.checked) });
    input.style.accentColor = color;
    const only = button("only", () => this.selectOnly(name), { title: "Show this run only", "aria-label": `only ${name}` });
    const label = element("label", { title: name }, input, element("span", { class: "name" }, name), value ? element("small", {}, value) : null);
    const dot = element("span", { class: "dot" });
    dot.style.background = color;
    if (value) label.insertBefore(dot, label.children[1]);
    const mark = element("span", { class: "mark" });
    return element("li", { "data-run": name }, label, mark, only);
  }

  /** Marks the runs with alerts. */
  showAlerts(texts) {
    for (const [name, row] of this.rows) {
      const count = texts.get(name)?.["rankmon/alerts"]?.length ?? 0;
      const mark = row.querySelector(".mark");
      mark.textContent = count ? `⚠ ${count}` : "";
      mark.title = count ? `${counted(count, "alert")}: see the end of the page` : "";
    }
  }

  filter() {
    const wanted = this.search.value.toLowerCase();
    for (const [name, row] of this.rows) row.hidden = !name.toLowerCase().includes(wanted);
  }

  setListed(isShown) {
    this.set([...this.rows].filter(([, row]) => !row.hidden).map(([name]) => name), isShown);
  }

  set(names, isShown) {
    for (const name of names) {
      if (isShown) this.hidden.delete(name);
      else this.hidden.add(name);
    }
    this.onChange([...this.hidden]);
  }

  selectOnly(name) {
    this.onChange([...this.rows.keys()].filter((other) => other !== name));
  }
}
