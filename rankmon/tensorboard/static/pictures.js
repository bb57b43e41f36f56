// A chart as a picture, with its title and legend, which are HTML on the page: PNG, SVG, and a figure for a paper.

import uPlot from "./vendor/uPlot.esm.min.js";
import { placed } from "./aligned.js";
import { element } from "./dom.js";
import { isEntry } from "./legend.js";
import { options } from "./plotoptions.js";
import { fillRich } from "./richtext.js";
import { recorded, TracedPath } from "./svg.js";
import { ink, inLight } from "./theme.js";

const FIGURE = { width: 317, height: 210, isFigure: true }; // pixels; 3.3 inches, where 12 pixels are 9 points

/** Returns the chart as it is shown, as a blob. */
export async function pngOf(chart) {
  const plot = chart.uplot.ctx.canvas;
  const ratio = plot.width / chart.uplot.width;
  const canvas = document.createElement("canvas");
  const size = { width: chart.uplot.width };
  const head = headHeight(chart, size) * ratio;
  Object.assign(canvas, { width: plot.width, height: plot.height + head });
  const ctx = canvas.getContext("2d");
  ctx.fillStyle = ink().page;
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.drawImage(plot, 0, head);
  ctx.scale(ratio, ratio);
  drawHead(ctx, chart, size);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Returns the chart as it is shown, as the text of an SVG. */
export function svgOf(chart) {
  return drawn(chart, { width: chart.uplot.width, height: chart.uplot.height });
}

/** Returns the chart as a figure for one column of a paper: in light colors, without a title. */
export function figureOf(chart) {
  const height = chart.spec.rowNames ? chart.uplot.height : FIGURE.height;
  return inLight(() => drawn(chart, { ...FIGURE, height }));
}

async function drawn(chart, size) {
  const host = element("div");
  const hidden = new Set(chart.uplot.series.filter((one) => !one.show).map((one) => one.label));
  const given = { ...options(chart, size.width, hidden), height: size.height };
  const { min, max } = chart.uplot.scales.x;
  if (size.isFigure) narrow(given);
  given.pxAlign = 0;
  given.cursor = { show: false };
  given.hooks.setScale = [];
  let copy;
  const [context] = await recorded(() => {
    copy = new uPlot(given, placed(chart.data, chart.spec), host);
    copy.setScale("x", { min, max });
  });
  const ratio = context.canvas.width / size.width;
  const head = headHeight(chart, size);
  const plot = context.text(context.canvas.width, context.canvas.height, "transparent");
  context.marks = [];
  context.clips = [];
  drawHead(context, chart, size);
  const inside = plot.replace(
    /^<svg [^>]*>/,
    `<svg y="${head}" width="${size.width}" height="${size.height}"` +
      ` viewBox="0 0 ${size.width * ratio} ${size.height * ratio}">`,
  );
  context.marks.push(inside);
  copy.destroy();
  return context.text(size.width, size.height + head, ink().page);
}

/** Gives the plot of a figure more of its little room. */
function narrow({ axes: [below, ...sides] }) {
  Object.assign(below, { space: 45, size: 30, labelSize: 16 });
  for (const axis of sides) Object.assign(axis, { size: Math.max(axis.size - 10, 52), labelSize: 16 });
}

const titleHeight = ({ isFigure }) => (isFigure ? 4 : 30);

const headHeight = (chart, size) => titleHeight(size) + 18 * headRows(chart, size).length;

/** Breaks the legend into rows that fit the width. */
function headRows({ spec, uplot }, { width }) {
  const rows = [[]];
  let left = width - 20;
  spec.lines.forEach((line, at) => {
    if (!isEntry(line) || !uplot.series[at + 1].show) return;
    const need = 7 * line.label.length + 46;
    if (need > left && rows.at(-1).length) {
      rows.push([]);
      left = width - 20;
    }
    rows.at(-1).push({ line, at, x: width - 10 - left });
    left -= need;
  });
  return rows;
}

/** Draws title and legend. */
function drawHead(ctx, chart, size) {
  ctx.fillStyle = ink().text;
  Object.assign(ctx, { textAlign: "left", textBaseline: "alphabetic" });
  if (!size.isFigure) fillRich(ctx, chart.spec.title, 10, 20, 12, "bold");
  headRows(chart, size).forEach((row, down) => {
    for (const { line, at, x } of row) {
      const y = titleHeight(size) + 10 + 18 * down;
      drawSwatch(ctx, chart.spec, line, at, x, y - 4);
      ctx.fillStyle = ink().text;
      fillRich(ctx, line.label, x + 32, y, 12);
    }
  });
}

function drawSwatch(ctx, spec, line, at, x, y) {
  const { lines, bands } = spec;
  const band = (bands ?? []).find(([high]) => lines[high].partOf === at);
  const ground = spec.ground ?? band?.[2];
  if (ground) {
    ctx.fillStyle = ground;
    ctx.fillRect(x, y - 5, 26, 10);
  }
  const circled = line.kind === "markers" ? line : lines.find((o) => o.partOf === at && o.kind === "markers");
  if (line.kind !== "markers") {
    ctx.beginPath();
    ctx.setLineDash(line.dash ?? []);
    Object.assign(ctx, { strokeStyle: line.color, lineWidth: Math.min(line.width ?? 2, 4) });
    ctx.moveTo(x, y);
    ctx.lineTo(x + 26, y);
    ctx.stroke();
    ctx.setLineDash([]);
  }
  if (!circled) return;
  const ring = new TracedPath(); // the context that writes SVG takes circles from such paths only
  ring.arc(x + 13, y, 3.5, 0, 2 * Math.PI);
  Object.assign(ctx, { fillStyle: circled.fill ?? ink().page, strokeStyle: circled.color, lineWidth: 1.4 });
  ctx.fill(ring);
  ctx.stroke(ring);
}
