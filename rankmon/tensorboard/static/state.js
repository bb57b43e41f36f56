// The user's settings: stored for this browser tab, and in the page's address, so that a link shows the same.

const KEY = "rankmon";
const PREFIX = "p.ranks."; // TensorBoard keeps such parameters in its address

const FIRST = {
  logX: false,
  median: false,
  axis: "step",
  theme: "auto",
  layers: "",
  split: false,
  share: false,
  colorBy: "",
  hidden: [],
  seen: [],
  closed: [],
  run: "",
  part: "",
};
// What a link has beside the shown runs, the cut and the step of the spectrum.
const LINKED = ["logX", "median", "axis", "layers", "split", "share", "colorBy", "closed", "run", "part"];

/** Returns the stored settings, or the defaults; those in the page's address take precedence. */
export function remembered() {
  try {
    return { ...FIRST, ...JSON.parse(sessionStorage.getItem(KEY) ?? "{}"), ...linked() };
  } catch {
    return { ...FIRST, ...linked() }; // storage is not available
  }
}

export function remember(state) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    // Without storage, the page starts with the defaults every time.
  }
}

/** Returns the window whose address the user sees: TensorBoard's, or the page's own. */
function outer() {
  try {
    return window.parent.location.href && window.parent;
  } catch {
    return window; // the parent page has another origin
  }
}

/** Returns the settings in the page's address. */
export function linked() {
  const found = {};
  for (const [name, text] of new URL(outer().location.href).searchParams) {
    if (!name.startsWith(PREFIX)) continue;
    try {
      found[name.slice(PREFIX.length)] = JSON.parse(text);
    } catch {
      // A link that was cut off by hand: the other settings hold.
    }
  }
  return found;
}

/** Puts settings that differ from the defaults, and `more`, into the page's address. */
export function link(state, more) {
  const chosen = LINKED.filter((name) => JSON.stringify(state[name]) !== JSON.stringify(FIRST[name]));
  const wanted = { ...Object.fromEntries(chosen.map((name) => [name, state[name]])), ...more };
  const { location, history } = outer();
  const url = new URL(location.href);
  for (const name of [...url.searchParams.keys()]) if (name.startsWith(PREFIX)) url.searchParams.delete(name);
  for (const [name, value] of Object.entries(wanted)) {
    if (value !== undefined) url.searchParams.set(PREFIX + name, JSON.stringify(value));
  }
  if (url.href === location.href) return;
  try {
    history.replaceState(history.state, "", url);
  } catch {
    // A file or an embedded page may not change its address.
  }
}
