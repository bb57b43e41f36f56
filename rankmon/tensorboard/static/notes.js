// The section of texts: cards and alerts of the runs.

import { element } from "./dom.js";
import { counted } from "./names.js";

export class NotesSection {
  id = "notes";
  title = "Cards and alerts";
  prefixes = [];

  constructor(app) {
    this.app = app;
    this.host = element("div", { class: "notes" });
    this.drawn = "";
  }

  isFor(_, texts) {
    return texts.length > 0;
  }

  draw() {
    const { runs, texts } = this.app;
    const notes = runs.flatMap(({ name }) =>
      Object.entries(texts.get(name) ?? {}).map(([tag, events]) => ({ name, tag, events })),
    );
    const drawn = JSON.stringify(notes);
    if (drawn === this.drawn) return; // keep the notes that the user has opened
    this.drawn = drawn;
    this.host.replaceChildren(...notes.map((note) => this.note(note)));
  }

  note({ name, tag, events }) {
    const isAlert = tag === "rankmon/alerts";
    const summary = isAlert ? `${name}: ${counted(events.length, "alert")}` : `${name}: card`;
    return element(
      "details",
      { class: isAlert ? "alerts" : "card", open: isAlert || this.app.runs.length === 1 },
      element("summary", {}, summary),
      ...events.map(({ step, html }) => {
        return element("article", {}, element("h3", {}, `step ${step}`), markdown(html));
      }),
    );
  }
}

/** Inserts HTML that TensorBoard's renderer has sanitized, without pictures, which it allows. */
function markdown(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const picture of template.content.querySelectorAll("img")) picture.remove();
  return element("div", { class: "markdown" }, template.content);
}
