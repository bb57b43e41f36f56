// The horizontal axis: steps, the share of each run, or the time since its first record.

export const [STEP, SHARE, TIME] = ["step", "share of the run", "hours"];
export const AXES = [STEP, SHARE, TIME];
const HOUR = 3600;

/** Places the series of runs along an axis; series with the same steps share one array of places. */
export class Axis {
  constructor() {
    this.times = new Map();
    this.places = new Map();
  }

  /** Sets the times of a run: {steps, values}, in seconds since 1970. */
  setTimes(run, times) {
    this.times.set(run, times);
    this.places.delete(run);
  }

  /** Returns a series over the axis of this kind; `last` is the last step of the run. */
  along(kind, run, last, series) {
    if (kind === STEP || !series) return series;
    const known = this.of(run, kind, last);
    if (!known.has(series.steps)) known.set(series.steps, this.placed(kind, run, last, series.steps));
    return { ...series, steps: known.get(series.steps) };
  }

  of(run, kind, last) {
    const key = `${kind} ${last}`;
    if (this.places.get(run)?.key !== key) this.places.set(run, { key, known: new WeakMap() });
    return this.places.get(run).known;
  }

  placed(kind, run, last, steps) {
    if (kind === SHARE) return Array.from(steps, (step) => (last > 0 ? step / last : 0));
    const times = this.times.get(run);
    if (!times?.steps.length) return Array.from(steps, () => NaN);
    return Array.from(steps, (step) => (timeAt(times, step) - times.values[0]) / HOUR);
  }
}

/** Returns the time of a step, interpolated between the records around it. */
function timeAt({ steps, values }, step) {
  let [low, high] = [0, steps.length - 1];
  if (step <= steps[low]) return values[low];
  if (step >= steps[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  const share = (step - steps[low]) / (steps[high] - steps[low]);
  return values[low] + share * (values[high] - values[low]);
}
