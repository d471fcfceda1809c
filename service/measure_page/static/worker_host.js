// The page's side of the measuring worker: starts it, watches it, replaces it.

import { RuntimeFailed } from "./runtime.js";

/** The runtime itself could not be started; no fault of any model. */
export class RuntimeUnavailable extends Error {}

/**
 * Runs tasks in a worker of its own. A worker that crashes or falls silent is ended, the task
 * fails with that reason, and the next task gets a fresh one that inherits the anchor's readings.
 */
export class WorkerHost {
  constructor({ provider, threads }, rules) {
    Object.assign(this, { provider, threads, rules, worker: null, tickMs: null });
    this.readings = {}; // anchor's sha256 -> ms a call
  }

  /**
   * One try. `onSlices` hears of slices as they are measured.
   * Throws RuntimeFailed, RuntimeUnavailable.
   */
  async measure(model, anchor, effort, onSlices) {
    const readings = this.readings[anchor.sha256] ?? [];
    if (!this.worker) await this.open();
    const message = { type: "measure", model, anchor: { ...anchor, readings }, effort };
    const answer = await this.ask(message, onSlices);
    this.readings[anchor.sha256] = answer.readings;
    return answer.numbers;
  }

  async open() {
    this.worker = new Worker(new URL("./measuring.js", import.meta.url), { type: "module" });
    const { provider, threads, rules } = this;
    try {
      ({ tickMs: this.tickMs } = await this.ask({ type: "open", provider, threads, rules }));
    } catch (error) {
      this.close();
      throw new RuntimeUnavailable(error.message);
    }
  }

  close() {
    this.worker?.terminate();
    this.worker = null;
  }

  ask(message, onSlices = () => {}) {
    return new Promise((resolve, reject) => {
      let watchdog;
      const giveUp = (reason, detail) => {
        clearTimeout(watchdog);
        if (reason !== "refused" && reason !== "wrong_provider") this.close();
        reject(new RuntimeFailed(reason, detail));
      };
      const watch = () => {
        clearTimeout(watchdog);
        watchdog = setTimeout(() => {
          giveUp("hung", `the worker said nothing for ${this.rules.hangSeconds} s`);
        }, this.rules.hangSeconds * 1000);
      };
      this.worker.onmessage = ({ data }) => {
        if (data.type === "beat") {
          watch();
          if (data.slices.length) onSlices(data.slices);
        } else if (data.type === "failed") {
          giveUp(data.reason, data.detail);
        } else {
          clearTimeout(watchdog);
          resolve(data);
        }
      };
      this.worker.onerror = (event) => {
        event.preventDefault();
        giveUp("crashed", event.message || "the worker ended");
      };
      watch();
      this.worker.postMessage(message);
    });
  }
}
