// A grid of charts, which are created and removed as needed.

import { Chart } from "./chart.js";
import { element } from "./dom.js";

export class ChartGrid {
  constructor(kind) {
    this.host = element("div", { class: `grid ${kind}` });
    this.charts = new Map();
  }

  /** @param {[string, import("./chart.js").Spec][]} specs the charts by id, in order */
  show(specs) {
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
      if (this.host.children[at] !== chart.host) {
        this.host.insertBefore(chart.host, this.host.children[at] ?? null);
      }
      chart.update(spec);
    });
  }
}
