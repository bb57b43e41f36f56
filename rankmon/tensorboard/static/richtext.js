// Names of the Hessian's parts, and norms, with their subscripts, in HTML and on canvases.

import { element } from "./dom.js";

const SYMBOL = /\b(H)_(L|o|f)\b|(‖)_(F)/g; // parts of the Hessian, and Frobenius norms
const LOWERED = 0.3; // of the font's size

/** Splits a text into plain pieces and symbols: strings, and pairs of a letter and its subscript. */
function pieces(text) {
  const found = [];
  let at = 0;
  for (const match of text.matchAll(SYMBOL)) {
    if (match.index > at) found.push(text.slice(at, match.index));
    found.push([match[1] ?? match[3], match[2] ?? match[4]]);
    at = match.index + match[0].length;
  }
  return at < text.length ? [...found, text.slice(at)] : found;
}

/** Returns the text as nodes: H_L as an italic H with a subscript. */
export function rich(text) {
  return pieces(String(text)).map((piece) =>
    typeof piece === "string"
      ? document.createTextNode(piece)
      : element("span", { class: "symbol" }, element(piece[0] === "H" ? "i" : "span", {}, piece[0]), element("sub", {}, piece[1])),
  );
}

/** Draws the text on a canvas, from (x, y), the left end of its baseline; `size` in pixels. */
export function fillRich(ctx, text, x, y, size, weight = "") {
  const family = "system-ui, sans-serif";
  const put = (word, style, height, down) => {
    ctx.font = `${style} ${weight} ${height}px ${family}`.trim();
    ctx.fillText(word, x, y + down);
    x += ctx.measureText(word).width;
  };
  for (const piece of pieces(text)) {
    if (typeof piece === "string") put(piece, "", size, 0);
    else {
      put(piece[0], piece[0] === "H" ? "italic" : "", size, 0);
      put(piece[1], "", 0.75 * size, LOWERED * size);
    }
  }
}
