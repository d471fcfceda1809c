// What this device says of itself: the profile of its target, and facts that change.

import { RUNTIME_VERSION } from "./runtime.js";

const HINTS = ["model", "platformVersion", "architecture", "bitness", "fullVersionList"];
const BROWSERS = [
  ["Edge", /\bEdg(?:e|A|iOS)?\/(\d+)/],
  ["Opera", /\bOPR\/(\d+)/],
  ["Samsung Internet", /\bSamsungBrowser\/(\d+)/],
  ["Firefox", /\b(?:Firefox|FxiOS)\/(\d+)/],
  ["Chrome", /\b(?:Chrome|CriOS)\/(\d+)/],
  ["Safari", /\bVersion\/(\d+)[\d.]* (?:Mobile\/\w+ )?Safari/],
];

/** `{device_model, machine, system}`; the engine decides too, so `system` names the browser. */
export async function describeDevice() {
  const hints = await hintsOfBrowser();
  const ua = navigator.userAgent;
  const platform = hints.platform || platformOf(ua);
  const version = platform === "Linux" ? "" : (hints.platformVersion ?? versionOf(ua));
  const cores = navigator.hardwareConcurrency ?? 1;
  const model = hints.model || modelOf(ua) || `${platform} device`;
  return {
    device_model: short(`${model}, ${cores} ${cores === 1 ? "core" : "cores"}`),
    machine: short(machineOf(hints)),
    system: short(`${`${platform} ${version}`.trim()} · ${browserOf(hints, ua)}`),
  };
}

/** The profile of the target that this device is with a choice of runtime. */
export function profileOf(device, { provider, threads }) {
  return {
    ...device,
    runtime: "onnxruntime-web",
    runtime_version: RUNTIME_VERSION,
    execution_provider: provider,
    threads,
    precision: "float32",
    batch: 1,
    clock_state: "unmanaged",
  };
}

/** The choices this browser can really run: `[{id, provider, threads, label, why}]`. */
export async function runtimeChoices() {
  const threads = Math.min(4, navigator.hardwareConcurrency ?? 1);
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return [
    { id: "wasm-1", provider: "wasm", threads: 1, label: "WebAssembly, 1 thread", why: "" },
    {
      id: "wasm-n", provider: "wasm", threads,
      label: threads > 1 ? `WebAssembly, ${threads} threads` : "WebAssembly, threads",
      why: !crossOriginIsolated ? "needs https" : threads < 2 ? "this device has one core" : "",
    },
    {
      id: "webgpu", provider: "webgpu", threads: 1, label: "WebGPU",
      why: adapter ? "" : navigator.gpu ? "no adapter here" : "not in this browser",
    },
  ];
}

/** Facts that go with each measurement. */
export async function factsNow({ tickMs, hidden, signatureChecked, skewMs }) {
  const battery = await navigator.getBattery?.().catch(() => null);
  return {
    cross_origin_isolated: Boolean(globalThis.crossOriginIsolated),
    clock_resolution_us: Number((tickMs * 1000).toPrecision(4)),
    hidden,
    user_agent: short(navigator.userAgent),
    hardware_concurrency: navigator.hardwareConcurrency ?? null,
    signature_checked: signatureChecked,
    clock_skew_s: Math.round(skewMs / 1000),
    ...(battery && { battery_level: battery.level, battery_charging: battery.charging }),
  };
}

async function hintsOfBrowser() {
  const data = navigator.userAgentData;
  if (!data) return {};
  try {
    return { platform: data.platform, ...(await data.getHighEntropyValues(HINTS)) };
  } catch {
    return { platform: data.platform, brands: data.brands };
  }
}

function browserOf(hints, ua) {
  const brands = (hints.fullVersionList ?? hints.brands ?? []).filter(
    ({ brand }) => !/not.*brand/i.test(brand),
  );
  const named = brands.find(({ brand }) => brand !== "Chromium") ?? brands[0];
  if (named) return `${named.brand} ${parseInt(named.version, 10)}`;
  for (const [name, pattern] of BROWSERS) {
    const found = pattern.exec(ua);
    if (found) return `${name} ${found[1]}`;
  }
  return "unknown browser";
}

function platformOf(ua) {
  if (/iPhone|iPad|iPod/.test(ua)) return "iOS";
  for (const name of ["Android", "Windows", "CrOS"]) if (ua.includes(name)) return name;
  if (/Mac OS X/.test(ua)) return "macOS";
  return /Linux/.test(ua) ? "Linux" : "unknown system";
}

function versionOf(ua) {
  const found = /(?:Android |OS |Windows NT |Mac OS X )([\d._]+)/.exec(ua);
  return found ? found[1].replaceAll("_", ".") : "";
}

function modelOf(ua) {
  const apple = /\((iPhone|iPad|iPod|Macintosh)/.exec(ua);
  if (apple) return apple[1] === "Macintosh" ? "Mac" : apple[1];
  const android = /Android [\d.]+; ([^;)]+)/.exec(ua);
  return android && android[1] !== "K" ? android[1].replace(/ Build\/.*/, "") : "";
}

function machineOf({ architecture, bitness }) {
  if (!architecture) return "unknown";
  if (architecture === "x86" && bitness === "64") return "x86_64";
  if (architecture === "arm" && bitness === "64") return "arm64";
  return `${architecture}${bitness ? ` ${bitness} bit` : ""}`;
}

function short(text) {
  return text.slice(0, 200);
}
