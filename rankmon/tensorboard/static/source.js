// Sources of data: TensorBoard's server, or the page itself. Both return the same objects.

import { sameItems } from "./finite.js";

/**
 * @typedef {{steps: number[], values: number[]}} Series
 * @typedef {{name: string, scalars: string[], spectra: string[], texts: string[]}} Run
 * @typedef {{steps: number[], positions: number, table: Uint8Array|Uint16Array|Uint32Array}} Counts
 */

const KINDS = { 8: Uint8Array, 16: Uint16Array, 32: Uint32Array };
const NAMES = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

/** Converts the strings that stand for non-finite numbers in JSON to numbers. */
function numbers(values) {
  return values.map((value) => (typeof value === "string" ? NAMES[value] : value));
}

const MOST_SHARED = 200;
const read = new Map();

/** Returns the equal array that was read before, if there is one: equal steps are then compared at once. */
function shared(steps) {
  const key = `${steps.length} ${steps[0]} ${steps.at(-1)}`;
  if (read.has(key) && sameItems(steps, read.get(key))) return read.get(key);
  if (read.size >= MOST_SHARED) read.clear();
  read.set(key, steps);
  return steps;
}

function bytes(base64) {
  const letters = atob(base64);
  const found = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) found[at] = letters.charCodeAt(at);
  return found.buffer;
}

function series(byTag) {
  const entries = Object.entries(byTag);
  return Object.fromEntries(
    entries.map(([tag, one]) => [tag, { steps: shared(one.steps), values: numbers(one.values) }]),
  );
}

function counts(payload) {
  const parts = Object.entries(payload.parts).map(([part, one]) => {
    return [part, { steps: shared(one.steps), table: new KINDS[one.bits](bytes(one.counts)) }];
  });
  return { ...payload, parts: Object.fromEntries(parts) };
}

function spectrum(payload) {
  const unpacked = (text) => (text === null ? null : Array.from(new Float32Array(bytes(text))));
  return { ...payload, values: unpacked(payload.values), negative: unpacked(payload.negative) };
}

function heatmap(payload) {
  return {
    ...payload,
    values: new Float32Array(bytes(payload.values)),
    cut: numbers(payload.cut),
  };
}

/** Returns a source that fetches from the server's routes below `base`. */
export function fetched(base) {
  async function get(route, query = []) {
    const address = new URL(route, base);
    for (const [name, value] of query) address.searchParams.append(name, value);
    const response = await fetch(address);
    if (!response.ok) throw new Error(`${route}: ${await response.text()}`);
    return response.json();
  }
  return {
    isLive: true,
    guide: () => get("guide"),
    runs: async () => (await get("runs")).runs,
    async scalars(runs, prefixes) {
      const query = [...runs.map((r) => ["run", r]), ...prefixes.map((p) => ["prefix", p])];
      const found = (await get("scalars", query)).runs;
      return Object.fromEntries(Object.entries(found).map(([run, tags]) => [run, series(tags)]));
    },
    counts: async (run) => counts(await get("counts", [["run", run]])),
    spectrum: async (run, part, step) =>
      spectrum(await get("spectrum", Object.entries({ run, part, step }))),
    heatmap: async (run, part) => heatmap(await get("heatmap", Object.entries({ run, part }))),
    async times(run) {
      const { steps, values } = await get("times", [["run", run]]);
      return { steps, values: numbers(values) };
    },
    texts: async (run) => get("texts", [["run", run]]),
    async pdf(svg) {
      const asked = { method: "POST", headers: { "Content-Type": "image/svg+xml" }, body: svg };
      const response = await fetch(new URL("pdf", base), asked);
      if (!response.ok) throw new Error(`pdf: ${await response.text()}`);
      return response.blob();
    },
  };
}

/** Returns a source that reads from objects in the page, one of `payload.whole` for each run. */
export function embedded(runs, guide) {
  const byName = new Map(runs.map((run) => [run.overview.name, run]));
  const nearest = (all, step) =>
    all.reduce((a, b) => (Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a));
  return {
    isLive: false,
    guide: async () => guide,
    runs: async () => runs.map((run) => run.overview),
    async scalars(names, prefixes) {
      const wanted = ([tag]) => prefixes.some((prefix) => tag.startsWith(prefix));
      const found = names.map((name) => {
        const tags = Object.entries(byName.get(name).scalars).filter(wanted);
        return [name, series(Object.fromEntries(tags))];
      });
      return Object.fromEntries(found);
    },
    counts: async (run) => counts(byName.get(run).counts),
    spectrum: async (run, part, step) => spectrum(nearest(byName.get(run).spectra[part], step)),
    async heatmap(run, part) {
      const own = byName.get(run);
      return { ...heatmap(own.heatmaps[part]), logged: own.spectra[part].map(({ step }) => step) };
    },
    texts: async (run) => byName.get(run).texts,
  };
}
