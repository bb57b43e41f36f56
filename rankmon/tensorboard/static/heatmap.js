// A heat map of log10 |eigenvalue| by step and index, drawn below a chart's lines over steps.

import { heatPixels } from "./theme.js";

const EVEN_PIXELS = 0.05;

/** Draws a column per step. It extends halfway to the previous step and halfway to the next one. */
export function drawHeatMap(u, { steps, indices }, image) {
  if (!image) return;
  const { ctx, bbox } = u;
  const edges = edgesOf(steps.map((step) => u.valToPos(step, "x", true)), bbox);
  const pieces = evenPieces(edges);
  const top = u.valToPos(indices.at(-1) + 1.5, "y", true);
  const bottom = u.valToPos(0.5, "y", true);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.imageSmoothingEnabled = false;
  for (let at = 0; at < pieces.length - 1; at++) {
    const [from, to] = [pieces[at], pieces[at + 1]];
    const width = edges[to] - edges[from];
    if (!(width > 0)) continue;
    const piece = narrowed(image, from, to, Math.ceil(width));
    ctx.drawImage(piece, piece === image ? from : 0, 0, Math.min(to - from, piece.width), indices.length, edges[from], top, width, bottom - top);
  }
  ctx.restore();
}

/** Returns the places in the table of the step and the row under the pointer; null if it is outside. */
export function placeAt(u, { steps, indices }) {
  const { left, top } = u.cursor;
  if (left === null || left < 0 || !steps.length || !indices.length) return null;
  return [nearest(steps, u.posToVal(left, "x")), nearest(indices, u.posToVal(top, "y") - 1)];
}

/** Draws the table, one pixel per value, with the first index at the bottom; null if it is empty. */
export function painted({ steps, indices, values }, [low, high]) {
  const [width, height] = [steps.length, indices.length];
  if (!width || !height) return null;
  const canvas = new OffscreenCanvas(width, height);
  const ctx = canvas.getContext("2d");
  const pixels = ctx.createImageData(width, height);
  const [shades, colored] = [heatPixels(), new Uint32Array(pixels.data.buffer)];
  const scale = (shades.length - 1) / (high - low);
  for (let step = 0; step < width; step++) {
    for (let index = 0; index < height; index++) {
      const value = values[step * height + index];
      if (Number.isNaN(value)) continue; // leave the pixel transparent
      const shade = Math.round(Math.min(Math.max((value - low) * scale, 0), shades.length - 1));
      colored[(height - 1 - index) * width + step] = shades[shade];
    }
  }
  ctx.putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * Returns an image of these columns that has at most so many: neighbors are blended by halves, where the
 * browser would drop some. With fewer columns, it is the whole image itself.
 */
function narrowed(image, from, to, most) {
  if (to - from <= most) return image;
  let [source, left, width] = [image, from, to - from];
  while (width > most) {
    const next = new OffscreenCanvas(Math.max(most, Math.ceil(width / 2)), image.height);
    next.getContext("2d").drawImage(source, left, 0, width, image.height, 0, 0, next.width, image.height);
    [source, left, width] = [next, 0, next.width];
  }
  return source;
}

/** Returns the ends of pieces, which are drawn at once: columns with the same width. */
function evenPieces(edges) {
  const ends = [0];
  for (let at = 1; at < edges.length - 1; at++) {
    const from = ends.at(-1);
    const width = edges[from + 1] - edges[from];
    const isUneven = Math.abs(edges[at + 1] - edges[from] - width * (at + 1 - from)) > EVEN_PIXELS;
    if (isUneven) ends.push(at);
  }
  return [...ends, edges.length - 1];
}

function edgesOf(centers, { left, width }) {
  const inner = centers.slice(1).map((center, at) => (center + centers[at]) / 2);
  return [Math.min(left, centers[0]), ...inner, Math.max(left + width, centers.at(-1))];
}

function nearest(sorted, value) {
  let best = 0;
  for (let at = 1; at < sorted.length; at++) {
    if (Math.abs(sorted[at] - value) < Math.abs(sorted[best] - value)) best = at;
  }
  return best;
}
