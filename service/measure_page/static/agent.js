// The agent's loop: lease, measure, journal, upload. Read this first; it is
// predictor/agent/run.py for a browser.

import { call, Problem, skewMs, Unreachable } from "./api.js";
import { factsNow } from "./device.js";
import { digest, isSigned } from "./integrity.js";
import { PROTOCOL_VERSION, settle } from "./protocol.js";
import { standingOf } from "./standing.js";
import { RuntimeFailed } from "./runtime.js";
import { Journal } from "./store.js";
import { RuntimeUnavailable, WorkerHost } from "./worker_host.js";

const LEASE_LIMIT = 8;
const BEGUN_AT_MOST = 3; // times; a task that was begun so often and ended the page is a crash

/** Redeem the code: who this device is from now on. The token never leaves the store. */
export async function enrol(code, name, agentVersion, profile) {
  const body = { code, name, agent_version: agentVersion, profiles: [profile] };
  const made = await call("POST", "/v1/agents", { body });
  const { id, token, target_ids, signing_key, heartbeat_seconds } = made;
  return { id, name, token, target_id: target_ids[0], signing_key, heartbeat_seconds, profile };
}

/**
 * Measures what the server leases, until told to pause; nothing measured is ever lost.
 * `view` hears what happens, see `View` in view.js. `identity` is what `enrol` returned.
 */
export class Agent {
  constructor({ identity, agentVersion, store, rules, view }) {
    Object.assign(this, { identity, agentVersion, store, rules, view });
    const { execution_provider: provider, threads } = identity.profile;
    this.host = new WorkerHost({ provider, threads }, rules);
    this.journal = new Journal(store);
    this.models = new Map(); // sha256 -> bytes, of anchors
    this.queue = []; // leased tasks: {task, tries}
    this.current = null; // the one being measured
    this.leaseEndsAt = 0;
    this.leaseMs = 0;
    this.draining = false;
    this.standing = { state: "waiting", text: "" }; // of the target, as the server told last
    this.idle = false; // the last request for work got none
    this.hiddenTimes = document.hidden ? 1 : 0;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.hiddenTimes += 1;
    });
  }

  /** Stop after the task at hand; what is measured is uploaded. */
  pause() {
    this.draining = true;
    this.stopping.abort();
    this.wake?.();
  }

  /** Until paused. Throws Problem when the server no longer wants this agent. */
  async run() {
    this.draining = false;
    this.stopping = new AbortController();
    const beating = setInterval(
      () => this.heartbeat().catch(() => {}), // the next request of the loop tells
      this.identity.heartbeat_seconds * 1000,
    );
    try {
      this.takeUpLease();
      this.heartbeat().catch(() => {});
      await this.insist(() => this.readProgress());
      await this.insist(() => this.upload());
      while (!this.draining) {
        if (!this.queue.length) await this.insist(() => this.lease());
        if (this.queue.length) await this.workThrough();
      }
      await this.insist(() => this.upload());
    } finally {
      clearInterval(beating);
    }
  }

  /** Measure what is queued; what failed a gate comes again at the end. */
  async workThrough() {
    this.view.state("measuring", "Measuring. Leave this page open and in front.");
    const startedAt = Date.now();
    while (this.queue.length && !this.draining) {
      if (Date.now() > this.leaseEndsAt) {
        this.view.log("The lease ended; its tasks are asked for again.");
        this.queue = [];
        break;
      }
      const entry = (this.current = this.queue.shift());
      const item = await this.insist(() => this.perform(entry));
      this.current = null;
      if (item) this.journal.add(item);
      else this.queue.push(entry);
      this.rememberLease();
      // most of a lease is for measuring; what is done has to arrive before it ends
      const late = Date.now() - startedAt > this.leaseMs / 2;
      if (late || !this.queue.length) await this.insist(() => this.upload());
    }
    if (this.draining) await this.insist(() => this.upload());
  }

  /** One more try of a task: its result as it is uploaded, null when it must be tried again. */
  async perform(entry) {
    const { task, tries } = entry;
    const result = {
      task_id: task.id, fence: task.fence, model_sha256: task.model_sha256,
      measurement: null, failure: null,
    };
    if (entry.begun >= BEGUN_AT_MOST) {
      const detail = `the page ended ${entry.begun} times while this was measured`;
      const failure = { code: "unsupported", reason: "crashed", detail };
      this.view.taskEnds(task, { failure });
      return { ...result, failure };
    }
    const { model, anchor, signed, doubt } = await this.fetchTask(task);
    if (doubt) {
      const failure = { code: "unsupported", reason: "not_authentic", detail: doubt };
      this.view.taskEnds(task, { failure });
      return { ...result, failure };
    }
    await this.visible();
    if (this.draining) return null;
    entry.begun += 1;
    this.rememberLease(entry);
    const hiddenBefore = this.hiddenTimes;
    this.view.taskBegins(task, tries.length);
    let numbers;
    try {
      numbers = await this.host.measure(model, anchor, task.effort, (slices) =>
        this.view.slices(slices),
      );
    } catch (error) {
      if (!(error instanceof RuntimeFailed)) throw error;
      if (error.reason === "hung" && this.hiddenTimes !== hiddenBefore) return null; // it slept
      this.view.taskEnds(task, { failure: error });
      const detail = error.message.slice(0, 500);
      return { ...result, failure: { code: "unsupported", reason: error.reason, detail } };
    } finally {
      entry.begun -= 1;
    }
    if (this.hiddenTimes !== hiddenBefore) {
      this.view.log("The page was hidden; what was measured meanwhile is discarded.");
      return null;
    }
    const facts = await factsNow({
      tickMs: this.host.tickMs, hidden: document.hidden, signatureChecked: signed, skewMs,
    });
    tries.push({
      ...numbers,
      thread_cpu_ms: null,
      measured_at: new Date(Date.now() + skewMs).toISOString(),
      flagged: false,
      protocol_version: PROTOCOL_VERSION,
      unit: "ms",
      facts,
    });
    const outcome = settle(tries);
    this.view.taskEnds(task, outcome ?? { again: tries.at(-1) });
    return outcome && { ...result, ...outcome };
  }

  /** The bytes of a task, checked: `{model, anchor, signed}`, or `{doubt}` where they fail. */
  async fetchTask(task) {
    const signed = await isSigned(task, this.identity.signing_key);
    if (signed === false) {
      return { doubt: "the signature of the task is not the server's" };
    }
    const model = await this.download(task.model_sha256);
    const known = this.models.get(task.anchor_sha256);
    const anchor = known ?? (await this.download(task.anchor_sha256));
    if (!model || !anchor) {
      const what = model ? "the anchor model" : "the model";
      return { doubt: `the server has no file of ${what} with the announced sha256` };
    }
    this.models.set(task.anchor_sha256, anchor);
    const withHash = { sha256: task.anchor_sha256, bytes: anchor };
    return { model, anchor: withHash, signed: signed === true };
  }

  /** The file of that hash, null when the server has none or sends another. */
  async download(sha256) {
    const { token } = this.identity;
    try {
      const bytes = await call("GET", `/v1/models/${sha256}`, { token, bytes: true });
      return (await digest(new Uint8Array(bytes))) === sha256 ? bytes : null;
    } catch (error) {
      if (error.status === 404) return null;
      throw error;
    }
  }

  // -- the server ----------------------------------------------------------------------

  async lease() {
    const { pollSeconds } = this.rules;
    const done = this.standing.state === "done";
    const waitSeconds = !this.idle ? 0 : done ? pollSeconds : Math.min(pollSeconds, 2);
    const { items, expires_at, draining } = await call("POST", "/v1/measurement-tasks/lease", {
      token: this.identity.token,
      body: { limit: LEASE_LIMIT, wait_seconds: waitSeconds },
      seconds: waitSeconds + 30,
      signal: this.stopping.signal,
    });
    this.idle = !items.length;
    this.queue = shuffled(items).map((task) => ({ task, tries: [], begun: 0 }));
    this.leaseEndsAt = Date.parse(expires_at) - skewMs;
    this.leaseMs = this.leaseEndsAt - Date.now();
    this.rememberLease();
    if (items.length) return;
    await this.readProgress();
    if (draining) this.view.state("waiting", "Its owner asked this device to stop measuring.");
    else this.view.state(this.standing.state, this.standing.text);
    if (draining) await this.sleep(this.rules.pollSeconds); // a drained agent is answered at once
  }

  async upload() {
    this.journal.seal();
    for (const batch of this.journal.pending()) {
      const { batch_id, items } = batch;
      try {
        const { token } = this.identity;
        const report = await call("POST", "/v1/measurements", { token, body: { batch_id, items } });
        this.journal.acknowledge(batch);
        for (const { task_id, accepted, reason } of report.items) {
          if (!accepted) this.view.log(`The server did not take ${task_id}: ${reason}`);
        }
      } catch (error) {
        if (!(error instanceof Problem) || error.passes || error.status === 401) throw error;
        this.journal.refuse(batch, error.message);
        this.view.log(`The server refused a batch: ${error.message}`);
      }
      await this.readProgress();
    }
  }

  async readProgress() {
    const self = await call("GET", "/v1/agents/self", { token: this.identity.token });
    const target = self.targets.find(({ id }) => id === this.identity.target_id);
    this.standing = standingOf(target);
    this.view.progress(target);
  }

  async heartbeat() {
    const { token, target_id, profile } = this.identity;
    const answer = await call("POST", "/v1/agents/self/heartbeat", {
      token,
      body: {
        agent_version: this.agentVersion,
        activity: this.view.activity().slice(0, 200),
        journal_batches: this.journal.pending().length,
        holds: this.holds(),
        profiles: { [target_id]: profile },
      },
    });
    this.leaseEndsAt = Math.max(this.leaseEndsAt, Date.now() + this.leaseMs); // it extends it
    for (const { text } of answer.stale) this.view.notice("stale", text);
  }

  /** The ids of the tasks in hand: only their leases are worth extending. */
  holds() {
    const open = [this.current, ...this.queue].filter(Boolean).map(({ task }) => task.id);
    const done = this.journal.pending().flatMap(({ items }) => items.map((i) => i.task_id));
    return [...open, ...done].slice(0, 1000);
  }

  // -- what the loop stands on ---------------------------------------------------------

  /** `act` until it works: a lost connection or a busy server is waited out. */
  async insist(act) {
    for (let attempt = 0; ; attempt++) {
      try {
        const value = await act();
        if (attempt) this.view.offline(null);
        return value;
      } catch (error) {
        const passes =
          error instanceof Unreachable || error instanceof RuntimeUnavailable || error.passes;
        if (!passes) throw error;
        if (this.draining) return undefined; // what is measured stays in the journal
        this.view.offline(error);
        const seconds = Math.min(30, this.rules.retrySeconds * 2 ** attempt);
        await this.sleep(seconds * (0.5 + Math.random() / 2));
      }
    }
  }

  sleep(seconds) {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        removeEventListener("online", done);
        resolve();
      };
      const timer = setTimeout(done, seconds * 1000);
      addEventListener("online", done);
      this.wake = done;
    });
  }

  /** Until the page is shown: hidden pages get less of the processor. */
  async visible() {
    while (document.hidden && !this.draining) {
      this.view.hidden();
      await new Promise((resolve) => {
        this.wake = resolve;
        document.addEventListener("visibilitychange", resolve, { once: true });
      });
    }
  }

  rememberLease(current) {
    const entries = current ? [current, ...this.queue] : this.queue;
    const tasks = entries.map(({ task, begun }) => ({ task, begun }));
    if (tasks.length) this.store.write("lease", { endsAt: this.leaseEndsAt, tasks });
    else this.store.remove("lease");
  }

  /** After a reload: what was leased and is not done. */
  takeUpLease() {
    const kept = this.queue.length ? null : this.store.read("lease");
    if (!kept || kept.endsAt < Date.now()) return;
    this.leaseEndsAt = kept.endsAt;
    this.queue = kept.tasks.map(({ task, begun }) => ({ task, begun, tries: [] }));
  }
}

function shuffled(items) {
  const left = [...items]; // drift must not line up with the order of a kit
  for (let i = left.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [left[i], left[j]] = [left[j], left[i]];
  }
  return left;
}
