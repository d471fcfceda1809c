// The worker that measures. The page sends one task at a time and hears:
//   {type: "ready", tickMs}
//   {type: "beat", slices}              a sign of life, at most some tenths of a second apart
//   {type: "tried", numbers, readings}  what protocol.js `measure` returned
//   {type: "failed", reason, detail}    the runtime could not load or run the model

import { Anchor, clockTickMs, measure } from "./protocol.js";
import { failed, Runtime } from "./runtime.js";

let setup; // {runtime, rules, tickMs}
const anchors = new Map(); // sha256 -> Anchor

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "open") await open(data);
    else await perform(data);
  } catch (error) {
    const { reason, message } = failed(error, setup?.runtime.provider ?? data.provider);
    post({ type: "failed", reason, detail: message });
  }
};

async function open({ provider, threads, rules }) {
  const tickMs = clockTickMs();
  setup = { runtime: await Runtime.open(provider, threads), rules, tickMs };
  post({ type: "ready", tickMs });
}

async function perform({ model: bytes, anchor: { sha256, bytes: anchorBytes, readings }, effort }) {
  const { runtime, rules, tickMs } = setup;
  beat([]);
  if (!anchors.has(sha256)) {
    const loaded = await runtime.load(anchorBytes);
    anchors.set(sha256, await Anchor.open(loaded, readings, rules, tickMs, () => beat([])));
  }
  const anchor = anchors.get(sha256);
  const model = await runtime.load(bytes);
  let numbers;
  try {
    numbers = await measure(model, anchor, effort, rules, tickMs, beat);
  } finally {
    await model.release();
  }
  numbers.provider = model.provider;
  post({ type: "tried", numbers, readings: anchor.readings });
}

function beat(slices) {
  post({ type: "beat", slices });
}

function post(message) {
  self.postMessage(message);
}
