// The section of texts: cards and alerts of the runs.

import { element } from "./dom.js";
import { counted, listed } from "./names.js";

const ALERTS = "rankmon/alerts";

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
    const notes = together(
      runs.flatMap(({ name }) =>
        Object.entries(texts.get(name) ?? {}).map(([tag, events]) => ({ names: [name], tag, events })),
      ),
    );
    const drawn = JSON.stringify(notes);
    if (drawn === this.drawn) return; // keep the notes that the user has opened
    this.drawn = drawn;
    this.host.replaceChildren(...notes.map((note) => this.note(note)));
  }

  note({ names, tag, events }) {
    const isAlert = tag === ALERTS;
    const whose = names.length > 1 ? `${listed(names)} (${names.length} runs, all alike)` : names[0];
    const summary = isAlert ? `${whose}: ${counted(events.length, "alert")}` : `${whose}: card`;
    return element(
      "details",
      { class: isAlert ? "alerts" : "card", open: isAlert },
      element("summary", {}, summary),
      ...events.map(({ step, html }) => {
        return element("article", {}, element("h3", {}, `step ${step}`), markdown(html));
      }),
    );
  }
}

/** Returns the notes, those of equal texts as one of several runs. */
function together(notes) {
  const byText = new Map();
  for (const { names, tag, events } of notes) {
    const text = JSON.stringify([tag, events]);
    if (byText.has(text)) byText.get(text).names.push(...names);
    else byText.set(text, { names, tag, events });
  }
  return [...byText.values()];
}

/** Inserts HTML that TensorBoard's renderer has sanitized, without pictures, which it allows. */
function markdown(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const picture of template.content.querySelectorAll("img")) picture.remove();
  return element("div", { class: "markdown" }, template.content);
}
