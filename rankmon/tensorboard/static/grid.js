// A grid of charts, which are created and removed as needed; of many, the first are shown until more are wanted.

import { Chart } from "./chart.js";
import { button, element } from "./dom.js";
import { counted } from "./names.js";

const NARROW = window.matchMedia("(max-width: 720px)");
const FEW = 4; // charts of a section on a narrow page, where each takes the whole width

export class ChartGrid {
  /**
   * @param {string} kind the class that sets the width of the columns
   * @param {number} most the number of charts at first on a wide page
   */
  constructor(kind, most = Infinity) {
    this.columns = element("div", { class: `grid ${kind}` });
    this.more = button("", () => this.showAll(), { class: "more", hidden: true });
    this.host = element("div", {}, this.columns, this.more);
    this.charts = new Map();
    this.most = most;
    NARROW.addEventListener("change", () => this.specs && this.show(this.specs));
  }

  /** @param {[string, import("./chart.js").Spec][]} specs the charts by id, in order */
  show(specs) {
    this.specs = specs;
    const most = this.isAll ? Infinity : NARROW.matches ? FEW : this.most;
    const rest = specs.length > most + 1 ? specs.length - most : 0; // one more is as short as the button
    this.more.hidden = !rest;
    this.more.textContent = `Show ${counted(rest, "more chart")}`;
    this.put(rest ? specs.slice(0, most) : specs);
  }

  showAll() {
    const shown = this.columns.children.length;
    this.isAll = true;
    this.show(this.specs);
    this.columns.children[shown]?.querySelector("button:not([hidden]), summary")?.focus(); // the button is gone
  }

  put(specs) {
    const wanted = new Set(specs.map(([id]) => id));
    for (const [id, chart] of this.charts) {
      if (wanted.has(id)) continue;
      chart.destroy();
      chart.host.remove();
      this.charts.delete(id);
    }
    specs.forEach(([id, spec], at) => {
      const chart = this.charts.get(id) ?? new Chart(id, spec);
      this.charts.set(id, chart);
      if (this.columns.children[at] !== chart.host) {
        this.columns.insertBefore(chart.host, this.columns.children[at] ?? null);
      }
      chart.update(spec);
    });
  }
}
