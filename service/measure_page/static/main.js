// Starts the page: who is this device, what may it run, and then the agent.

import { Agent, enrol } from "./agent.js";
import { Problem } from "./api.js";
import { describeDevice, profileOf, runtimeChoices } from "./device.js";
import { RULES } from "./protocol.js";
import { sha256 } from "./sha256.js";
import { Store } from "./store.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const code = decodeURIComponent(location.pathname.split("/").pop()).trim().toUpperCase();
const agentVersion = document.querySelector("meta[name=tailor-version]").content;
const rules = rulesOfTests(RULES, window.__tailorProtocol);
const store = new Store(code);
const view = new View();
let agent = null;

window.tailor = { rules, sha256, store, get agent() { return agent; } };
window.addEventListener("unhandledrejection", ({ reason }) => view.error(String(reason)));
main().catch((error) => view.error(error.message));

async function main() {
  if (typeof WebAssembly !== "object") return view.error("This browser has no WebAssembly.");
  const device = await describeDevice();
  const choices = [];
  watchVisibility();
  $("pause").addEventListener("click", pauseOrContinue);
  $("setup").addEventListener("submit", (event) => {
    event.preventDefault();
    start(device, choices).catch((error) => view.error(error.message));
  });
  const identity = store.read("identity");
  if (identity) return resume(identity, device);
  choices.push(...(await runtimeChoices()));
  showChoices(choices);
  $("name").value = device.device_model;
  view.device(profileOf(device, choices[0]), { code });
  view.state("ready");
}

async function start(device, choices) {
  const chosen = choices.find(({ id }) => id === $("setup").elements.runtime.value);
  const name = $("name").value.trim() || device.device_model;
  view.notice("error", "");
  view.state("enrolling", "Connecting");
  try {
    store.write("identity", await enrol(code, name, agentVersion, profileOf(device, chosen)));
  } catch (error) {
    // the form stays, so that a lost connection costs one more press and not the code
    view.state(error instanceof Problem ? "error" : "ready");
    view.notice("error", `This device could not be enrolled: ${error.message}`, "bad");
    return;
  }
  await resume(store.read("identity"), device);
}

/** Go on as the agent that this page has been before. */
async function resume(identity, device) {
  const { execution_provider: provider, threads } = identity.profile;
  const profile = profileOf(device, { provider, threads });
  view.device(profile, { name: identity.name, agent: identity.id, code });
  agent = new Agent({ identity: { ...identity, profile }, agentVersion, store, rules, view });
  const changed = Object.keys(profile).filter((key) => profile[key] !== identity.profile[key]);
  if (changed.length) {
    await agent.heartbeat().catch(() => {}); // the server marks what rests on the old profile
    const was = changed.map((key) => `${key} was ${identity.profile[key]}, is ${profile[key]}`);
    return view.error(`This is another target now (${was.join("; ")}). Ask for a new code.`);
  }
  if (!store.lasting) view.notice("store", "This browser keeps nothing: do not reload the page.");
  if (store.read("paused")) return view.state("paused", "Paused.");
  await work();
}

/** Run the agent, in one tab only, with the screen on. */
async function work() {
  if (!navigator.locks) return runAgent();
  await navigator.locks.request(`tailor ${code}`, { ifAvailable: true }, async (lock) => {
    if (lock) return runAgent();
    view.error("This code is already measuring in another tab of this browser.");
  });
}

async function runAgent() {
  keepScreenOn();
  try {
    view.state("waiting", "Connecting");
    await agent.run();
    view.state("paused", "Paused. What is measured is kept.");
  } catch (error) {
    if (error.status === 401) {
      view.error(`The server no longer knows this device: ${error.message}`);
    } else {
      view.error(error.message);
    }
    agent.host.close();
  }
}

function pauseOrContinue() {
  if (document.body.dataset.state === "paused") {
    store.remove("paused");
    work().catch((error) => view.error(error.message));
  } else {
    store.write("paused", true);
    view.pausing();
    agent.pause();
  }
}

function showChoices(choices) {
  for (const { id, label, why } of choices) {
    const row = document.createElement("label");
    const radio = document.createElement("input");
    const reason = document.createElement("small");
    Object.assign(radio, { type: "radio", name: "runtime", value: id, disabled: Boolean(why) });
    radio.checked = id === choices[0].id;
    reason.textContent = why;
    row.append(radio, label, reason);
    $("choices").append(row);
  }
}

function watchVisibility() {
  const show = () => {
    const text = "Bring this page to the front: hidden pages are slowed down, so nothing is " +
      "measured meanwhile.";
    view.notice("hidden", document.hidden ? text : "");
    if (!document.hidden && document.body.dataset.state === "measuring") keepScreenOn();
  };
  document.addEventListener("visibilitychange", show);
  show();
}

async function keepScreenOn() {
  try {
    await navigator.wakeLock.request("screen");
    view.notice("screen", "");
  } catch {
    // no https, or the battery is low: people can still touch the screen
    if (matchMedia("(pointer: coarse)").matches) {
      view.notice("screen", "Keep the screen on: this browser does not let the page do it.");
    }
  }
}

/**
 * The tests' door: a test sets `window.__tailorProtocol` before the page loads, and what it
 * names replaces the rule of that name, so that a kit takes seconds. Nothing else sets it.
 */
function rulesOfTests(rules, changes = {}) {
  const efforts = Object.fromEntries(
    Object.entries(rules.efforts).map(([name, asked]) => [name, { ...asked, ...changes.efforts }]),
  );
  return { ...rules, ...changes, efforts };
}
