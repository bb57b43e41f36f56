// Whether the values of a series are finite, and whether two are equal; series never change, so answers are kept.

const finite = new WeakMap();
const equal = new WeakMap();

/** Returns whether these are counts, which come as typed arrays of whole numbers. */
export const isCounts = (values) =>
  values instanceof Uint16Array || values instanceof Uint8Array || values instanceof Uint32Array;

/** Returns whether all values are finite. */
export function allFinite(values) {
  if (isCounts(values)) return true;
  if (!finite.has(values)) finite.set(values, values.every(Number.isFinite));
  return finite.get(values);
}

/** Returns whether two arrays have the same items; NaN is the same as NaN. */
export function sameItems(one, other) {
  if (one === other) return true;
  if (one.length !== other.length) return false;
  const compared = () => one.every((value, at) => Object.is(value, other[at]));
  if (isCounts(one) || isCounts(other)) return compared(); // other counts at each position of the slider
  if (!equal.has(one)) equal.set(one, new WeakMap());
  const known = equal.get(one);
  if (!known.has(other)) known.set(other, compared());
  return known.get(other);
}
