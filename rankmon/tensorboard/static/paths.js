// Draw lines with very many points quickly: only the minimum and maximum of each column of pixels.

import uPlot from "./vendor/uPlot.esm.min.js";

const everyPoint = uPlot.paths.linear();

/** The width of a column in screen pixels; the points in a column become one vertical stroke. */
const COLUMN = 2;

/**
 * Returns a path like uPlot's own, but with at most four points per column; uPlot thins lines only if
 * they have four or more points per pixel. Lines with gaps and edges of bands keep all points.
 */
export function thinned(u, index, from, to) {
  const path = isBounding(u, index) ? null : columns(u, index, from, to);
  return path ? { stroke: path, fill: null, clip: null, band: null, gaps: null, flags: 0 } : everyPoint(u, index, from, to);
}

const isBounding = (u, index) => u.bands.some(({ series }) => series.includes(index));

/** Returns the path; null if a value is missing, or if the line has too few points to be thinned. */
function columns(u, index, from, to) {
  return uPlot.orient(u, index, (_, xs, ys, scaleX, scaleY, toX, toY, left, top, width, height) => {
    const size = COLUMN * devicePixelRatio;
    if ((to - from) * size < 1.5 * width) return null;
    const path = new Path2D();
    const xAt = (i) => toX(xs[i], scaleX, width, left);
    const yAt = (value) => toY(value, scaleY, height, top);
    let at = from;
    while (at <= to) {
      const end = xAt(at) + size;
      let [first, last, low, high] = [at, at, ys[at], ys[at]];
      for (; at <= to && xAt(at) < end; at++) {
        const value = ys[at];
        if (typeof value !== "number") return null;
        if (value < low) low = value;
        if (value > high) high = value;
        last = at;
      }
      const x = Math.round(end - size / 2);
      path.lineTo(x, Math.round(yAt(ys[first])));
      if (low !== high) {
        path.lineTo(x, Math.round(yAt(low)));
        path.lineTo(x, Math.round(yAt(high)));
        path.lineTo(x, Math.round(yAt(ys[last])));
      }
    }
    return path;
  });
}
