// Colors of the Hessian's parts, of runs, and of the page in light and dark themes.

export const PARTS = ["H_L", "H_o", "H_f", "H_f_fixed"];

// Okabe and Ito's palette, whose colors color-blind readers can distinguish.
const PART_COLORS = { H_L: "#0072b2", H_o: "#009e73", H_f: "#d55e00", H_f_fixed: "#cc79a7" };
const LAYERS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"];

/** Returns the name of a part as in the paper. */
export function partName(part) {
  return part === "H_f_fixed" ? "H_f, residual fixed" : part;
}

export const partColor = (part) => PART_COLORS[part];
export const lineColor = (index) => LAYERS[index % LAYERS.length];

/** Returns the color of a run by index; steps of the golden angle keep neighboring hues distinct. */
export function runColor(index) {
  return index < LAYERS.length ? LAYERS[index] : `hsl(${Math.round(index * 137.5) % 360} 60% 50%)`;
}

/** Returns the color with transparency. */
export function veil(color) {
  return color.startsWith("#") ? `${color}2e` : color.replace(")", " / 0.18)");
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

/** Returns the color map as a CSS gradient, for legends. */
export function heatGradient() {
  return `linear-gradient(to right, ${HEAT.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
}
