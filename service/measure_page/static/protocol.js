// How one model is measured in a browser: predictor/agent/protocol.py, version 2, for a clock
// that ticks in 5 to 1000 µs instead of nanoseconds.
//
// Time is cut into slices. A slice holds as many calls as make it long against the clock's tick,
// and its mean per call is one sample. Before and after each slice an anchor model runs; where
// it takes longer than on the quiet device, other work had the core and the slice is discarded.

export const PROTOCOL_VERSION = 2;
export const TRIES = 4;

/** How much is asked of one measurement; see `Protocol` in predictor/agent/protocol.py. */
export const RULES = {
  efforts: {
    table: {
      warmupRuns: 10, warmupSeconds: 0.1, minSamples: 20, minSeconds: 0.15, maxSeconds: 3,
      interval: 0.01,
    },
    certificate: {
      warmupRuns: 10, warmupSeconds: 0.5, minSamples: 64, minSeconds: 0.5, maxSeconds: 20,
      interval: 0.005,
    },
  },
  sliceMs: 5,
  sliceTicks: 20, // a slice is at least this many ticks of the clock
  anchorWarmCalls: 2, // before one look
  anchorTimings: 5, // in one look, of which the median counts
  anchorMs: 20, // that is enough for a look
  anchorTicks: 40, // a timing of the anchor must tell 6 % apart, so it lasts this many ticks
  anchorTolerance: 0.06,
  openingSeconds: 2,
  decileTolerance: 0.05,
  driftTolerance: 0.03,
  hangSeconds: 60, // silence of the worker after which it is given up
  retrySeconds: 1, // first pause after a lost connection; doubles up to 30 s
  pollSeconds: 20, // how long one request for work may wait
};

const KEPT_READINGS = 2000;
const REPORT_MS = 100;

/** The step of `performance.now()`, in ms: the median of 30 observed steps. */
export function clockTickMs() {
  const steps = [];
  const end = performance.now() + 300;
  let before = performance.now();
  while (steps.length < 30 && before < end) {
    const now = performance.now();
    if (now > before) steps.push(now - before);
    before = now;
  }
  return quantile(steps.sort(ascending), 0.5);
}

/**
 * Run `model` `n` times back to back; ms per call. Half a tick of dither, because start and end
 * are rounded to ticks and a median of rounded values would sit on a tick as well.
 */
export async function timeCalls(model, n, tickMs) {
  const start = performance.now();
  for (let i = 0; i < n; i++) await model.run();
  const elapsed = performance.now() - start + tickMs * (Math.random() - 0.5);
  return Math.max(elapsed, tickMs / 2, 1e-6) / n;
}

/** A small model whose time tells whether the core is ours alone right now. */
export class Anchor {
  /** `readings`: earlier ones, in ms a call; without any, an opening takes some. */
  static async open(model, readings, rules, tickMs, beat) {
    const anchor = new Anchor(model, readings, rules, tickMs);
    await timeCalls(model, 5, tickMs); // the first calls are slow
    anchor.callMs = await timeCalls(model, 5, tickMs);
    const end = performance.now() + (readings.length ? 0 : rules.openingSeconds * 1000);
    do {
      anchor.readings.push(await anchor.read());
      beat();
      await new Promise((resolve) => setTimeout(resolve, 2)); // over busy and quiet moments
    } while (performance.now() < end);
    anchor.settle();
    return anchor;
  }

  constructor(model, readings, rules, tickMs) {
    Object.assign(this, { model, rules, tickMs, readings: [...readings] });
  }

  async isQuiet() {
    const reading = await this.read();
    this.readings.push(reading);
    if (this.readings.length % 100 === 0) this.settle();
    return reading <= this.bestMs * (1 + this.rules.anchorTolerance);
  }

  /**
   * One look: the median of some timings, because single calls of a browser are slow now and
   * then. The calls before it fetch the anchor back into the caches: a large model, just run,
   * has driven it out, and that would pass for a busy device.
   */
  async read() {
    for (let i = 0; i < this.rules.anchorWarmCalls; i++) await this.model.run();
    const [times, n] = [[], this.callsPerTiming];
    for (let i = 0; i < this.timings; i++) times.push(await timeCalls(this.model, n, this.tickMs));
    return quantile(times.sort(ascending), 0.5);
  }

  /** As many as the clock's tick needs to tell 6 % apart. */
  get callsPerTiming() {
    return Math.max(1, Math.ceil((this.rules.anchorTicks * this.tickMs) / this.callMs));
  }

  /** Of one look: fewer where they take long, and always an odd number. */
  get timings() {
    const { anchorTimings, anchorMs } = this.rules;
    const fit = Math.floor(anchorMs / (this.callsPerTiming * this.callMs));
    return Math.min(anchorTimings, Math.max(1, fit - 1 + (fit % 2)));
  }

  /** How long one look takes, in ms. */
  get lookMs() {
    return this.bestMs * (this.rules.anchorWarmCalls + this.callsPerTiming * this.timings);
  }

  /** Its best: the 2nd percentile, because a neighbour can spoil nine readings of ten. */
  settle() {
    this.readings.splice(0, this.readings.length - KEPT_READINGS);
    this.bestMs = [...this.readings].sort(ascending)[Math.floor(this.readings.length / 50)];
  }
}

/**
 * Measure the calls of `model` once. Returns the numbers of a measurement, with `note` set where
 * a noise gate failed; `latency_ms` is null when too few slices were quiet to say anything.
 * `report(slices)` hears of new slices, [ms a call, quiet] each, every tenth of a second.
 */
export async function measure(model, anchor, effort, rules, tickMs, report) {
  const asked = rules.efforts[effort];
  const sliceMs = Math.max(rules.sliceMs, rules.sliceTicks * tickMs);
  let callMs = await warmUp(model, asked, sliceMs, tickMs, report);
  const samples = [];
  let [slices, calls, quietMs] = [0, 0, 0];
  let [fresh, reported] = [[], performance.now()];
  const started = performance.now();
  // a slow model gets the time its slices need, else it would always count as noisy
  const cycleMs = Math.max(sliceMs, callMs) + anchor.lookMs;
  const maxMs = Math.max(asked.maxSeconds * 1000, 6 * asked.minSamples * cycleMs);
  let quietBefore = await anchor.isQuiet();
  for (;;) {
    const n = Math.max(1, Math.ceil(sliceMs / callMs));
    const sample = await timeCalls(model, n, tickMs);
    const quietAfter = await anchor.isQuiet();
    const quiet = quietBefore && quietAfter;
    slices += 1;
    if (quiet) {
      samples.push(sample);
      calls += n;
      quietMs += sample * n;
      callMs = sample;
    }
    quietBefore = quietAfter;
    fresh.push([sample, quiet]);
    const now = performance.now();
    if (now - reported > REPORT_MS) {
      report(fresh);
      [fresh, reported] = [[], now];
    }
    const enough = samples.length >= asked.minSamples && quietMs >= asked.minSeconds * 1000;
    if (enough && samples.length % 4 === 0 && interval(samples) <= asked.interval) break;
    if (now - started > maxMs) break;
  }
  report(fresh);
  const contended = 1 - samples.length / slices;
  if (samples.length < asked.minSamples) {
    const seconds = ((performance.now() - started) / 1000).toPrecision(2);
    const note = `only ${samples.length} of ${slices} slices were quiet in ${seconds} s`;
    return { latency_ms: null, note };
  }
  return { ...summary(samples, asked, rules, contended), n: calls, anchor_ms: anchor.bestMs };
}

async function warmUp(model, asked, sliceMs, tickMs, report) {
  const end = performance.now() + asked.warmupSeconds * 1000;
  let [runs, n, callMs] = [0, 1, 0];
  while (runs < asked.warmupRuns || performance.now() < end) {
    callMs = await timeCalls(model, n, tickMs);
    runs += n;
    n = Math.min(1000, Math.max(1, Math.ceil(sliceMs / callMs)));
    report([]);
  }
  return callMs;
}

function summary(samples, asked, rules, contended) {
  const ordered = [...samples].sort(ascending);
  const [p10, median, p90] = [0.1, 0.5, 0.9].map((q) => quantile(ordered, q));
  const width = interval(samples);
  return {
    latency_ms: median,
    p10_ms: p10,
    p90_ms: p90,
    sigma_ms: (median * width) / (2 * 1.96),
    contended_share: contended,
    grade: width <= asked.interval && contended <= 0.5 ? "A" : "B",
    note: failedGates(samples, p10, median, width, asked, rules).join("; "),
  };
}

function failedGates(samples, p10, median, width, asked, rules) {
  const notes = [];
  const below = (median - p10) / median;
  if (below > rules.decileTolerance) notes.push(`p10 is ${percent(below)} below the median`);
  if (width > 2 * asked.interval) notes.push(`the median is only known to ${percent(width)}`);
  const third = Math.floor(samples.length / 3);
  const [first, last] = [samples.slice(0, third), samples.slice(-third)].map((part) =>
    quantile(part.sort(ascending), 0.5),
  );
  const drift = last / first - 1;
  if (Math.abs(drift) > rules.driftTolerance) {
    notes.push(`the latency drifted by ${percent(drift)} while it was measured`);
  }
  return notes;
}

/** Width of the 95 % confidence interval of the median, relative, from order statistics. */
export function interval(samples) {
  const n = samples.length;
  if (n < 10) return Infinity;
  const ordered = [...samples].sort(ascending);
  const reach = 0.98 * Math.sqrt(n); // 1.96 standard deviations of Binomial(n, 1/2)
  const low = Math.max(0, Math.floor(n / 2 - reach));
  const high = Math.min(n - 1, Math.ceil(n / 2 + reach));
  return (ordered[high] - ordered[low]) / ordered[Math.floor(n / 2)];
}

/**
 * What becomes of a task after these tries, oldest first: null for another try, else
 * `{measurement}` or `{failure}`.
 */
export function settle(tries) {
  const last = tries.at(-1);
  const asQuarantined = ({ latency_ms, note }) => ({ latency_ms, reason: note });
  if (last.latency_ms !== null && !last.note) {
    return { measurement: { ...last, quarantined: tries.slice(0, -1).map(asQuarantined) } };
  }
  if (tries.length < TRIES) return null;
  const usable = tries.filter((t) => t.latency_ms !== null);
  if (!usable.length) {
    return { failure: { code: "too_noisy", reason: "noise", detail: last.note } };
  }
  const latencies = usable.map((t) => t.latency_ms);
  const best = usable[latencies.indexOf(Math.min(...latencies))];
  const spread = Math.max(...latencies) - Math.min(...latencies);
  const measurement = {
    ...best,
    flagged: true,
    grade: "C",
    sigma_ms: Math.max(best.sigma_ms, spread),
    quarantined: tries.filter((t) => t !== best).map(asQuarantined),
  };
  return { measurement };
}

function ascending(a, b) {
  return a - b;
}

function quantile(ordered, q) {
  const at = (ordered.length - 1) * q;
  const low = Math.floor(at);
  const high = Math.min(low + 1, ordered.length - 1);
  return ordered[low] + (at - low) * (ordered[high] - ordered[low]);
}

function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}
