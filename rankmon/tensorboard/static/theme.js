// Colors of the Hessian's parts, of runs, and of the page in light and dark themes.

export const PARTS = ["H_L", "H_o", "H_f", "H_f_fixed"];

// Okabe and Ito's palette on light pages, lightened on dark ones; `rankmon/_util/palette.py` has the
// same colors, and its tests compute contrasts and distances for color-blind readers.
const PALETTES = {
  light: {
    parts: { H_L: "#0072b2", H_o: "#009e73", H_f: "#d55e00", H_f_fixed: "#cc79a7" },
    lines: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6b3a00", "#7a7a00", "#767676"],
    negative: "#a06a00",
  },
  dark: {
    parts: { H_L: "#4aa8e8", H_o: "#3fc79a", H_f: "#ff8a3d", H_f_fixed: "#e79ac6" },
    lines: ["#4aa8e8", "#ff8a3d", "#3fc79a", "#e79ac6", "#f0e28a", "#b7b7ff", "#c4c4c4"],
    negative: "#f0c24a",
  },
};

const palette = () => PALETTES[document.documentElement.dataset.theme] ?? PALETTES.light;

// Wide lines are drawn first: if lines coincide, such as H_L and H_o at a minimum, both stay visible.
const LOOKS = {
  H_L: { width: 4.5 },
  H_o: { width: 2, dash: [10, 3, 2, 3] },
  H_f: { width: 2, dash: [14, 4] },
  H_f_fixed: { width: 2, dash: [5, 4] },
};

/** Returns the name of a part as in the paper. */
export function partName(part) {
  return part === "H_f_fixed" ? "H_f, residual fixed" : part;
}

export const partColor = (part) => palette().parts[part];
/** Returns color, width and dash of a part's line. */
export const partLook = (part) => ({ color: partColor(part), ...LOOKS[part] });
export const lineColor = (index) => palette().lines[index % palette().lines.length];
export const negativeColor = () => palette().negative;

/** Returns the color of a run by index; steps of the golden angle keep neighboring hues distinct. */
export function runColor(index) {
  const { lines } = palette();
  const lightness = palette() === PALETTES.dark ? 68 : 38;
  return index < lines.length ? lines[index] : `hsl(${Math.round(index * 137.5) % 360} 60% ${lightness}%)`;
}

/** Returns a color of three digits, such as #222, with six. */
const whole = (hex) => (hex.length === 4 ? hex.replaceAll(/[0-9a-f]/gi, "$&$&") : hex);

/** Returns the color with transparency. */
export function veil(color) {
  return color.startsWith("#") ? `${whole(color)}2e` : color.replace(")", " / 0.18)");
}

/** Returns the color of lines to compare with, which the measured lines must outshine. */
export function faint(color) {
  return color.startsWith("#") ? `${whole(color)}99` : color.replace(")", " / 0.6)");
}

/** Returns the colors for charts in the current theme. */
export function ink() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { text: read("--text"), muted: read("--muted"), grid: read("--grid"), page: read("--page") };
}

function hostIsDark() {
  try {
    return window.parent !== window && window.parent.document.body.classList.contains("dark-mode");
  } catch {
    return false; // the parent page has another origin and cannot be read
  }
}

/** Returns whether the page is dark: by the user's setting, else TensorBoard's, else the system's. */
export function isDark(chosen) {
  if (chosen !== "auto") return chosen === "dark";
  return hostIsDark() || window.matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Calls `changed` when TensorBoard or the system switches between light and dark. */
export function onHostTheme(changed) {
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  try {
    if (window.parent === window) return;
    const watched = { attributes: true, attributeFilter: ["class"] };
    new MutationObserver(changed).observe(window.parent.document.body, watched);
  } catch {
    // The parent page has another origin and cannot be watched.
  }
}

// The viridis color map at eight points.
const HEAT = ["440154", "46327e", "365c8d", "277f8e", "1fa187", "4ac16d", "a0da39", "fde725"].map(
  (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)),
);

/** Returns red, green and blue for a value between 0 and 1. */
export function heat(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((value, i) => value + (at - low) * (HEAT[low + 1][i] - value));
}

const SHADES = 1024;
let shades;

/** Returns the colors of shares from 0 to 1, in even steps, as pixels of 32 bits, to color whole maps by. */
export function heatPixels() {
  if (shades) return shades;
  const colors = Array.from({ length: SHADES }, (_, at) => [...heat(at / (SHADES - 1)), 255]);
  shades = new Uint32Array(Uint8ClampedArray.from(colors.flat()).buffer);
  return shades;
}

/** Returns the color map as a CSS gradient, for legends. */
export function heatGradient() {
  return `linear-gradient(to right, ${HEAT.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
}

/** Returns a drawing that `draw` makes in the light theme, whatever the page's theme is. */
export async function inLight(draw) {
  const { dataset } = document.documentElement;
  const own = dataset.theme;
  dataset.theme = "light";
  try {
    const drawing = await draw(); // no frame is shown meanwhile: drawings wait for microtasks only
    return own === "dark" ? lightened(drawing) : drawing;
  } finally {
    dataset.theme = own;
  }
}

/** Returns a drawing with the colors of lines, which are chosen before, of the light palette. */
function lightened(drawing) {
  const { light, dark } = PALETTES;
  const pairs = [
    ...dark.lines.map((color, at) => [color, light.lines[at]]),
    ...Object.keys(dark.parts).map((part) => [dark.parts[part], light.parts[part]]),
    [dark.negative, light.negative],
    ["60% 68%", "60% 38%"],
    ["#e6e6e6", "#222"], // the ink of lines without a color of their own
    ["#b0b0b0", "#6b6b6b"],
  ];
  return pairs.reduce((text, [from, to]) => text.replaceAll(from, to), drawing);
}

// The parts of the color map that are seen on the page: the dark ones on a light page, and vice versa.
const SEEN = { light: [0, 0.55], dark: [0.5, 1] };

/** Returns a color of a line by the place of its value among others, from 0 to 1. */
export function orderedColor(share) {
  const [low, high] = palette() === PALETTES.dark ? SEEN.dark : SEEN.light;
  const hex = heat(low + share * (high - low)).map((part) => Math.round(part).toString(16).padStart(2, "0"));
  return `#${hex.join("")}`;
}
