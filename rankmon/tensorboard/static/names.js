// The order of names of runs and layers, words in singular and plural, and labels of axes.

// A number with decimals, as in lr_0.003; digits between dots, as in a version or a path, are whole.
const NUMBER = /((?<![\d.])\d+(?:\.\d+(?!\.?\d))?(?:e[-+]?\d+)?|\d+)/i;

/** Compares names such that seed_2 comes before seed_10, and lr_0.003 before lr_0.01. */
export function naturally(one, other) {
  const [a, b] = [one.split(NUMBER), other.split(NUMBER)]; // numbers have odd indices
  for (let at = 0; at < Math.min(a.length, b.length); at++) {
    if (at % 2) {
      if (Number(a[at]) !== Number(b[at])) return Number(a[at]) - Number(b[at]);
    } else if (a[at] !== b[at]) return a[at] < b[at] ? -1 : 1;
  }
  return a.length - b.length;
}

/** Returns the name of a layer in sentences: layers without names have numbers, from 0. */
export const layerName = (layer) => (/^\d+$/.test(layer) ? `layer ${layer}` : layer);

/** Returns the name of a layer as a title. */
export const layerTitle = (layer) => layerName(layer).replace(/^layer /, "Layer ");

const LONGEST = 40;

/** Returns a name of at most 40 letters: a long one without its middle. */
export function shortened(name, longest = LONGEST) {
  if (name.length <= longest) return name;
  const half = Math.floor((longest - 1) / 2);
  return `${name.slice(0, longest - 1 - half)}…${name.slice(-half)}`;
}

/** Returns a count with its noun, such as "1 alert" and "2 alerts". */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

const MOST_NAMES = 4;

/** Returns the first names, and the number of the others. */
export function listed(names) {
  const rest = names.length - MOST_NAMES;
  return rest > 0 ? `${names.slice(0, MOST_NAMES).join("; ")} and ${rest} more` : names.join("; ");
}

/** Returns the names without the folders that all of them begin with, and without a last part they share. */
export function unshared(names) {
  if (names.length < 2) return names;
  const parts = names.map((name) => name.split("/"));
  const shortest = Math.min(...parts.map(({ length }) => length));
  const isShared = (at) => parts.every((one) => one.at(at) === parts[0].at(at));
  let from = 0;
  while (from < shortest - 1 && isShared(from)) from++;
  let to = 0;
  while (to < shortest - 1 - from && isShared(-1 - to)) to++;
  return parts.map((one) => one.slice(from, one.length - to).join("/"));
}

/** Returns the label of an axis from a unit of the legend. */
export function axisLabel(unit) {
  if (unit === "soft count") return "rank"; // stable and effective ranks
  return unit.replace("as the eigenvalues", "eigenvalue").replace(/^as the /, "unit of the ");
}
