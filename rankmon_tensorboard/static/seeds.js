// Several runs as one: the median over them, with the lowest and the highest.

/**
 * @param {{steps: number[], values: ArrayLike<number>}[]} all one series a run
 * @returns {{steps: number[], median: number[], low: number[], high: number[]}} at steps that all have
 */
export function overRuns(all) {
  const places = all.map(({ steps }) => new Map(steps.map((step, at) => [step, at])));
  const steps = all[0].steps.filter((step) => places.every((place) => place.has(step)));
  const [median, low, high] = [[], [], []];
  for (const step of steps) {
    const values = all.map((one, run) => one.values[places[run].get(step)]).sort((a, b) => a - b);
    const middle = (values.length - 1) / 2;
    median.push((values[Math.floor(middle)] + values[Math.ceil(middle)]) / 2);
    low.push(values[0]);
    high.push(values.at(-1));
  }
  return { steps, median, low, high };
}
