// What people see. The agent tells, the view shows; it decides nothing.

import { Strip } from "./strip.js";

const LOGGED = 200;
const $ = (id) => document.getElementById(id);

export class View {
  constructor() {
    this.strip = new Strip($("strip"));
    this.grades = { A: 0, B: 0, C: 0 };
    this.finished = 0; // tasks that ended since measuring began
    this.startedAt = null; // null while nothing is measured
    this.spentMs = 0; // measuring, before that
    this.unsent = 0; // of those, ended since the server was last asked
    this.counts = { done: 0, failed: 0, total: 0 };
    this.milestone = 0;
    setInterval(() => this.clock(), 1000);
  }

  /** `state` is what tests and style sheets see; `text` is said aloud by screen readers. */
  state(state, text) {
    document.body.dataset.state = state;
    if (text && $("headline").textContent !== text) $("headline").textContent = text;
    if (state === "measuring") {
      this.startedAt ??= Date.now();
    } else if (this.startedAt !== null) {
      this.spentMs += Date.now() - this.startedAt;
      this.startedAt = null;
    }
    const busy = ["enrolling", "measuring", "waiting", "done", "paused"].includes(state);
    $("setup").hidden = busy || state === "error";
    $("measuring").hidden = !busy;
    $("more").hidden = false;
    $("now").hidden = state !== "measuring";
    $("pause").hidden = state === "enrolling";
    $("pause").disabled = false;
    $("pause").textContent = state === "paused" ? "Continue" : "Pause";
    $("pause").classList.toggle("primary", state === "paused");
    if (state !== "measuring") this.clock();
  }

  pausing() {
    $("pause").disabled = true;
    $("pause").textContent = "Pausing after this measurement";
  }

  error(text) {
    this.state("error");
    this.notice("error", text, "bad");
  }

  /** One notice of each kind; an empty text takes it away. */
  notice(kind, text, level = "") {
    const old = $(`notice-${kind}`);
    if (!text) return old?.remove();
    const shown = old ?? document.createElement("p");
    shown.id = `notice-${kind}`;
    shown.className = `notice ${level}`;
    if (shown.textContent !== text) shown.textContent = text;
    if (!old) $("notices").append(shown);
  }

  offline(error) {
    document.body.dataset.offline = String(Boolean(error));
    const text = error && `Trying again: ${error.message}. Nothing measured is lost.`;
    this.notice("offline", text);
    if (error) this.log(text);
  }

  hidden() {
    this.log("Paused while the page is hidden.");
  }

  log(text) {
    const line = document.createElement("li");
    line.textContent = `${new Date().toLocaleTimeString()}  ${text}`;
    $("log").prepend(line);
    while ($("log").children.length > LOGGED) $("log").lastChild.remove();
  }

  device(profile, more = {}) {
    const rows = { ...profile, ...more };
    $("device").replaceChildren(
      ...Object.entries(rows).flatMap(([name, value]) => [
        element("dt", name.replaceAll("_", " ")), element("dd", String(value)),
      ]),
    );
  }

  // -- measuring -----------------------------------------------------------------------

  taskBegins(task, triesBefore) {
    this.strip.clear();
    $("subject").textContent = wordsFor(task.subject) + (triesBefore ? ", once more" : "");
    $("latency").textContent = "";
  }

  slices(slices) {
    this.strip.add(slices);
    const { median } = this.strip;
    if (median !== null) $("latency").textContent = milliseconds(median);
  }

  taskEnds(task, { measurement, failure, again }) {
    const words = wordsFor(task.subject);
    if (again) return this.log(`${words}: set aside, ${again.note}`);
    this.finished += 1;
    this.unsent += 1;
    this.showCounts();
    if (failure) {
      return this.log(`${words}: ${failure.reason}, ${failure.detail ?? failure.message}`);
    }
    this.grades[measurement.grade] += 1;
    const parts = Object.entries(this.grades).filter(([, n]) => n);
    $("grades").textContent = parts.map(([grade, n]) => `${n} ${grade}`).join(" · ");
    this.log(`${words}: ${milliseconds(measurement.latency_ms)}, grade ${measurement.grade}`);
  }

  /** `target` as `GET /v1/agents/self` describes it. */
  progress({ kits, latency_models: models }) {
    const sum = (field) => kits.reduce((total, kit) => total + (kit[field] ?? 0), 0);
    const [done, failed, total] = [sum("completed"), sum("failed"), sum("total")];
    this.counts = { done, failed, total };
    this.unsent = 0;
    this.showCounts();
    $("n-done").textContent = done;
    $("n-failed").textContent = failed;
    $("n-flagged").textContent = sum("flagged");
    $("result").hidden = !models.length;
    $("bands").replaceChildren(...models.map((model) => band(model, kits)));
  }

  showCounts() {
    const { done, failed, total } = this.counts;
    const ended = Math.min(total, done + failed + this.unsent);
    $("bar").hidden = !total;
    $("progress").value = total ? ended / total : 0;
    $("count").textContent = `${ended} of ${total} measured`;
    document.title = total ? `${ended}/${total} · Tailor` : "Measure this device · Tailor";
    const tenth = Math.floor((10 * ended) / (total || 1));
    if (tenth > this.milestone && tenth < 10 && document.body.dataset.state === "measuring") {
      $("headline").textContent = `Measuring, ${tenth * 10} % done. Leave this page in front.`;
    }
    this.milestone = tenth;
  }

  get left() {
    const { done, failed, total } = this.counts;
    return total - done - failed - this.unsent;
  }

  clock() {
    if (document.body.dataset.state !== "measuring") {
      $("times").textContent = "";
      return;
    }
    const seconds = (this.spentMs + Date.now() - this.startedAt) / 1000;
    const each = this.finished >= 5 ? seconds / this.finished : null;
    const left = each && this.left > 0 ? `, about ${duration(each * this.left)} left` : "";
    $("times").textContent = `${duration(seconds)}${left}`;
  }

  activity() {
    const { state } = document.body.dataset;
    return state === "measuring" ? `measuring ${$("subject").textContent}` : state;
  }
}

/** One latency model: the band of its space, how good it is, what it rests on. */
function band({ search_space, fastest_ms, slowest_ms, stale, report }, kits) {
  const box = element("div", "", "band");
  box.append(
    element("p", `Networks of ${search_space} take, on this device`),
    element("p", `${number(fastest_ms)} to ${milliseconds(slowest_ms)}`, "range"),
  );
  const held = report?.held_out ?? null;
  const scores = held ?? report?.leave_one_out ?? null;
  const rows = [];
  if (scores) {
    const asked = held ? "networks it never saw" : "networks left out in turn";
    const off = `off by ${percent(scores.mape)} on average, on ${scores.n} ${asked}`;
    rows.push(["Predictions", off]);
    rows.push(["Within 10 %", `${percent(scores.within_10)} of them`]);
  }
  const kit = kits.find((one) => one.search_space === search_space);
  if (kit) {
    const flagged = kit.flagged ? `, ${kit.flagged} flagged` : "";
    rows.push(["Coverage", `${kit.completed} of ${kit.total} models measured${flagged}`]);
  }
  if (stale) rows.push(["Stale", "the device has changed since; it should be measured again"]);
  const facts = element("dl", "", "facts");
  for (const [name, value] of rows) facts.append(element("dt", name), element("dd", value));
  box.append(facts);
  return box;
}

function wordsFor(subject) {
  const [kind, ...rest] = subject.split(":");
  if (kind === "network") return `A network of ${rest[0].split("@")[0]}`;
  if (kind !== "block") return subject;
  const copies = Number(rest[1]?.slice(1));
  return `Block ${rest[0]}${copies > 1 ? `, ${copies} in a row` : ""}`;
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function number(value) {
  return String(Number(value.toPrecision(3)));
}

function milliseconds(value) {
  return `${number(value)} ms`;
}

function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}

function duration(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
