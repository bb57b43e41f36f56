// Lines of more points than can be told apart, drawn by the least and greatest of each column.

import uPlot from "./vendor/uPlot.esm.js";

const everyPoint = uPlot.paths.linear();

/** Pixels of the screen that one column takes: what lies in it is one upright stroke. */
const COLUMN = 2;

/**
 * A path like uPlot's own, with at most four points a column; uPlot itself thins lines only from four
 * points a pixel on. Lines with gaps, and those that bound a band, are drawn by every point.
 */
export function thinned(u, index, from, to) {
  const path = isBounding(u, index) ? null : columns(u, index, from, to);
  return path ? { stroke: path, fill: null, clip: null, band: null, gaps: null, flags: 0 } : everyPoint(u, index, from, to);
}

const isBounding = (u, index) => u.bands.some(({ series }) => series.includes(index));

/** The stroke; null where a number is missing, or columns would save nothing. */
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
