// The user's settings, stored for this browser tab.

const KEY = "rankmon";

const FIRST = { logX: false, median: false, theme: "auto", hidden: [], closed: [], run: "", part: "" };

/** Returns the stored settings, or the defaults. */
export function remembered() {
  try {
    return { ...FIRST, ...JSON.parse(sessionStorage.getItem(KEY) ?? "{}") };
  } catch {
    return { ...FIRST }; // storage is not available
  }
}

export function remember(state) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(state));
  } catch {
    // Without storage, the page starts with the defaults every time.
  }
}
