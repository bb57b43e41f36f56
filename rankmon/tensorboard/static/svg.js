// A 2D drawing context that writes SVG, with only the methods that uPlot and our legends call.

const COPIED = ["fillStyle", "strokeStyle", "lineWidth", "lineJoin", "lineCap", "font", "textAlign"];
const STATE = [...COPIED, "textBaseline", "globalAlpha", "dash", "matrix", "clipped"];
const ANCHORS = { left: "start", start: "start", center: "middle", right: "end", end: "end" };
const BASELINES = { top: "hanging", middle: "central", bottom: "text-after-edge" };

const ownContext = HTMLCanvasElement.prototype.getContext;

let ruled;
/** Returns a context that knows the widths of letters. */
const ruler = () => (ruled ??= ownContext.call(document.createElement("canvas"), "2d"));

const escaped = (text) =>
  String(text).replace(/[&<>"']/g, (letter) => `&#${letter.codePointAt(0)};`);
const short = (number) => Math.round(number * 100) / 100;

/** Returns a line's path data. On a canvas, a first lineTo only moves; in SVG this must be an "M". */
const lineOf = (data, x, y) => `${data ? "L" : "M"}${short(x)} ${short(y)}`;

/** A Path2D that also records its commands as SVG path data. */
export class TracedPath extends Path2D {
  constructor(other) {
    super(other);
    this.data = other?.data ?? "";
  }
  moveTo(x, y) {
    super.moveTo(x, y);
    this.data += `M${short(x)} ${short(y)}`;
  }
  lineTo(x, y) {
    super.lineTo(x, y);
    this.data += lineOf(this.data, x, y);
  }
  bezierCurveTo(...at) {
    super.bezierCurveTo(...at);
    this.data += `C${at.map(short).join(" ")}`;
  }
  rect(x, y, width, height) {
    super.rect(x, y, width, height);
    this.data += `M${short(x)} ${short(y)}h${short(width)}v${short(height)}h${short(-width)}Z`;
  }
  arc(x, y, radius, from, to) {
    super.arc(x, y, radius, from, to);
    const r = short(radius); // uPlot draws whole circles only
    this.data += `M${short(x - radius)} ${short(y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  }
  closePath() {
    super.closePath();
    this.data += "Z";
  }
  addPath(other) {
    super.addPath(other);
    this.data += other.data;
  }
}

export class SvgContext {
  constructor(canvas) {
    this.canvas = canvas;
    Object.assign(this, { fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, lineJoin: "miter" });
    Object.assign(this, { lineCap: "butt", font: "10px sans-serif", textAlign: "start" });
    Object.assign(this, { textBaseline: "alphabetic", globalAlpha: 1, dash: [], clipped: null });
    this.matrix = new DOMMatrix();
    this.saved = [];
    this.marks = [];
    this.clips = [];
    this.path = "";
  }
  save() {
    this.saved.push(Object.fromEntries(STATE.map((name) => [name, this[name]])));
  }
  restore() {
    Object.assign(this, this.saved.pop());
  }
  translate(x, y) {
    this.matrix = this.matrix.translate(x, y);
  }
  rotate(angle) {
    this.matrix = this.matrix.rotate((angle * 180) / Math.PI);
  }
  setLineDash(dash) {
    this.dash = dash;
  }
  clearRect() {}
  beginPath() {
    this.path = "";
  }
  moveTo(x, y) {
    this.path += `M${short(x)} ${short(y)}`;
  }
  lineTo(x, y) {
    this.path += lineOf(this.path, x, y);
  }
  closePath() {
    this.path += "Z";
  }
  rect(x, y, width, height) {
    this.path += `M${short(x)} ${short(y)}h${short(width)}v${short(height)}h${short(-width)}Z`;
  }
  clip(path) {
    const id = `clip${this.clips.length}`;
    const data = path ? path.data : this.path;
    this.clips.push(`<clipPath id="${id}"${this.where()}><path d="${data}"/></clipPath>`);
    this.clipped = id;
  }
  where() {
    const { a, b, c, d, e, f } = this.matrix;
    const moved = this.matrix.isIdentity ? "" : ` transform="matrix(${[a, b, c, d, e, f].map(short)})"`;
    return moved + (this.clipped === null ? "" : ` clip-path="url(#${this.clipped})"`);
  }
  stroke(path) {
    const dash = this.dash.length ? ` stroke-dasharray="${this.dash.map(short)}"` : "";
    this.mark(
      path,
      `fill="none" stroke="${escaped(this.strokeStyle)}" stroke-width="${short(this.lineWidth)}"` +
        ` stroke-linejoin="${this.lineJoin}" stroke-linecap="${this.lineCap}"${dash}`,
    );
  }
  fill(path) {
    this.mark(path, `fill="${escaped(this.fillStyle)}"`);
  }
  mark(path, look) {
    const data = path ? path.data : this.path;
    if (data) {
      this.marks.push(`<path d="${data}" ${look} opacity="${this.globalAlpha}"${this.where()}/>`);
    }
  }
  fillRect(x, y, width, height) {
    this.beginPath();
    this.rect(x, y, width, height);
    this.fill();
  }
  fillText(text, x, y) {
    const anchor = ANCHORS[this.textAlign];
    const baseline = BASELINES[this.textBaseline] ?? "auto";
    const look = `fill="${escaped(this.fillStyle)}" style="font:${escaped(this.font)}"`;
    this.marks.push(
      `<text x="${short(x)}" y="${short(y)}" ${look} text-anchor="${anchor}"` +
        ` dominant-baseline="${baseline}"${this.where()}>${escaped(text)}</text>`,
    );
  }
  measureText(text) {
    const rule = ruler();
    rule.font = this.font;
    return { width: rule.measureText(text).width };
  }
  drawImage(image, sx, sy, sw, sh, x, y, width, height) {
    const part = document.createElement("canvas");
    Object.assign(part, { width: sw, height: sh });
    ownContext.call(part, "2d").drawImage(image, sx, sy, sw, sh, 0, 0, sw, sh);
    this.marks.push(
      `<image href="${part.toDataURL()}" x="${short(x)}" y="${short(y)}" width="${short(width)}"` +
        ` height="${short(height)}" preserveAspectRatio="none" style="image-rendering:pixelated"` +
        `${this.where()}/>`,
    );
  }
  /** Returns the whole document, with this background color. */
  text(width, height, ground) {
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"` +
      ` viewBox="0 0 ${width} ${height}"><defs>${this.clips.join("")}</defs>` +
      `<rect width="100%" height="100%" fill="${escaped(ground)}"/>${this.marks.join("\n")}</svg>`
    );
  }
}

/** Calls `draw` with canvases that write SVG, and returns the contexts that it used. */
export async function recorded(draw) {
  const contexts = [];
  const own = { path: window.Path2D, context: HTMLCanvasElement.prototype.getContext };
  window.Path2D = TracedPath;
  HTMLCanvasElement.prototype.getContext = function () {
    contexts.push(new SvgContext(this));
    return contexts.at(-1);
  };
  try {
    draw();
    await Promise.resolve(); // uPlot draws in a microtask
    await Promise.resolve();
  } finally {
    window.Path2D = own.path;
    HTMLCanvasElement.prototype.getContext = own.context;
  }
  return contexts;
}
