// The menu of a chart that saves it as a picture or a table: closed, so that charts stay quiet.

import { button, copy, element, save } from "./dom.js";
import { figureOf } from "./pictures.js";

const offered = { pdf: null };

/** Offers PDFs in the menus of charts made from now on, by a server's function from SVG to PDF. */
export const offerPdf = (pdfOf) => (offered.pdf = pdfOf);

const fileName = (id) => id.replaceAll(/[^\p{L}\p{N}.-]+/gu, "_");
const svgBlob = (text) => new Blob([text], { type: "image/svg+xml" });

async function savePdf(name, chart) {
  const pdf = await offered.pdf(await figureOf(chart));
  if (pdf) save(name, pdf);
}

/** Returns the menu; it closes after a choice, on Escape, and when the pointer or the focus is elsewhere. */
export function saveMenu(chart) {
  const named = (ending) => `${fileName(chart.id)}.${ending}`;
  const items = [
    ["PNG", "Save this chart as PNG", async () => save(named("png"), await chart.png())],
    ["SVG", "Save this chart as SVG", async () => save(named("svg"), svgBlob(await chart.svg()))],
    ["Figure", "Save as SVG for a paper: a column wide (3.3 in), text of 9 pt, on white", async () => save(named("figure.svg"), svgBlob(await figureOf(chart)))],
    ...(offered.pdf ? [["PDF", "Save as PDF for a paper: the same figure, with its fonts", async () => savePdf(named("pdf"), chart)]] : []),
    ["CSV", "Save the values of this chart as CSV", () => save(named("csv"), new Blob([chart.csv()], { type: "text/csv" }))],
    ["Copy", "Copy the values of this chart as CSV", () => copy(chart.csv())],
  ];
  const close = () => (menu.open = false);
  const chosen = (action) => async () => {
    close();
    opener.focus(); // the chosen button is no longer there
    await action();
  };
  const buttons = items.map(([label, title, action]) => button(label, chosen(action), { title }));
  const opener = element("summary", { title: "Save or copy this chart" }, "Save");
  const menu = element("details", { class: "saving" }, opener, element("div", { class: "menu" }, ...buttons));
  const closeOutside = ({ target }) => menu.contains(target) || close();
  menu.addEventListener("toggle", () => {
    if (menu.open) document.addEventListener("pointerdown", closeOutside);
    else document.removeEventListener("pointerdown", closeOutside);
  });
  menu.addEventListener("focusout", ({ relatedTarget }) => relatedTarget && closeOutside({ target: relatedTarget }));
  menu.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !menu.open) return;
    close();
    opener.focus();
  });
  return menu;
}
