// Summarize several runs by the median, the lowest and the highest value.

/** Returns whether a run with these tags is a `SeedsMonitor`'s summary of its seeds. */
export const isSummary = (tags) =>
  tags.some((tag) => {
    const of = /^(rank.*)\/median$/.exec(tag)?.[1]; // a layer, too, may be named "median"
    return of && tags.includes(`${of}/low`) && tags.includes(`${of}/high`);
  });

/** Returns tags without the suffixes of a summary of seeds; those of other runs as they are. */
export const plainTags = (tags) => (isSummary(tags) ? tags.map(summarized) : tags);

/** Removes the suffix for the median, the lowest or the highest value from a tag. */
export const summarized = (tag) => tag.replace(/\/(median|low|high)$/, "");

/**
 * @param {{steps: number[], values: ArrayLike<number>}[]} all one series per run
 * @returns {{steps: number[], median: number[], low: number[], high: number[]}} at common steps
 */
export function overRuns(all) {
  const [steps, columns] = atCommonSteps(all);
  const [median, low, high] = [[], [], []];
  for (let at = 0; at < steps.length; at++) {
    const values = Float64Array.from(columns, (column) => column[at]).sort();
    const known = values.filter((value) => !Number.isNaN(value));
    const middle = (values.length - 1) / 2;
    const isKnown = known.length === values.length; // of unknown values no median is known
    median.push(isKnown ? (values[Math.floor(middle)] + values[Math.ceil(middle)]) / 2 : NaN);
    low.push(known[0] ?? NaN);
    high.push(known.at(-1) ?? NaN);
  }
  return { steps, median, low, high };
}

function atCommonSteps(all) {
  const [{ steps: first }] = all;
  const isFirst = ({ steps }) =>
    steps.length === first.length && steps.every((step, at) => step === first[at]);
  if (all.every(isFirst)) return [first, all.map(({ values }) => values)];
  const byStep = all.map(({ steps, values }) => new Map(steps.map((step, at) => [step, values[at]])));
  const common = first.filter((step) => byStep.every((one) => one.has(step)));
  return [common, byStep.map((one) => common.map((step) => one.get(step)))];
}
