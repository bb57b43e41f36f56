// Several runs as one: the median over them, with the lowest and the highest.

/** Whether a run with these tags is the one that training wrote of all its seeds. */
export const isSummary = (tags) =>
  tags.some((tag) => {
    const of = /^(rank.*)\/median$/.exec(tag)?.[1]; // a layer may be called median, too
    return of && tags.includes(`${of}/low`) && tags.includes(`${of}/high`);
  });

/** The tag of which this is the median, the lowest or the highest. */
export const summarized = (tag) => tag.replace(/\/(median|low|high)$/, "");

/**
 * @param {{steps: number[], values: ArrayLike<number>}[]} all one series a run
 * @returns {{steps: number[], median: number[], low: number[], high: number[]}} at steps that all have
 */
export function overRuns(all) {
  const [steps, columns] = atCommonSteps(all);
  const [median, low, high] = [[], [], []];
  for (let at = 0; at < steps.length; at++) {
    const values = Float64Array.from(columns, (column) => column[at]).sort();
    const middle = (values.length - 1) / 2;
    median.push((values[Math.floor(middle)] + values[Math.ceil(middle)]) / 2);
    low.push(values[0]);
    high.push(values.at(-1));
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
