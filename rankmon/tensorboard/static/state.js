// What the reader has chosen, kept for this browser tab.

const KEY = "rankmon";

const FIRST = { logX: false, median: false, theme: "auto", hidden: [], closed: [], run: "", part: "" };

/** The choices of last time, or the first ones. */
export function remembered() {
  try {
    return { ...FIRST, ...JSON.parse(sessionStorage.getItem(KEY) ?? "{}") };
  } catch {
    return { ...FIRST }; // a page without storage
  }
}

export function remember(state) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    // A page without storage starts afresh every time.
  }
}
