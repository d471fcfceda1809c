// ONNX Runtime Web, from this server.

export const RUNTIME_VERSION = "1.30.0";

const FOLDER = new URL(`./vendor/onnxruntime-web-${RUNTIME_VERSION}/`, import.meta.url).href;
const FILES = {
  wasm: { api: "ort.wasm.min.mjs", module: "ort-wasm-simd-threaded" },
  webgpu: { api: "ort.webgpu.min.mjs", module: "ort-wasm-simd-threaded.asyncify" },
};
const NO_MEMORY = /out of memory|bad_alloc|enlarge memory|allocation failed|could not allocate/i;
const TRAP = /unreachable|memory access|table index|null function|aborted\(|stack/i;

/** A model that could not be loaded or run; `reason` as in predictor/measurements.py. */
export class RuntimeFailed extends Error {
  constructor(reason, detail) {
    super(detail);
    this.reason = reason;
  }
}

/** Loads models for one execution provider, "wasm" or "webgpu", with a number of threads. */
export class Runtime {
  /** Fetches everything now, so that a lost connection is not taken for a fault of a model. */
  static async open(provider, threads) {
    const { api, module } = FILES[provider];
    if (provider === "webgpu" && !(await navigator.gpu?.requestAdapter())) {
      throw new Error("WebGPU gives no adapter here");
    }
    const [ort, binary] = await Promise.all([
      import(FOLDER + api),
      fetchBytes(`${FOLDER}${module}.wasm`),
      import(`${FOLDER}${module}.mjs`),
    ]);
    ort.env.logLevel = "error";
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.wasmPaths = FOLDER;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.proxy = false;
    return new Runtime(ort, provider);
  }

  constructor(ort, provider) {
    Object.assign(this, { ort, provider });
  }

  /** A session with its fixed random input, run once. */
  async load(bytes) {
    const options = {
      executionProviders: [this.provider],
      graphOptimizationLevel: "all",
      logSeverityLevel: 3,
    };
    if (this.provider !== "wasm") {
      // else nodes the GPU cannot run would move to WASM and nobody would know
      options.extra = { session: { disable_cpu_ep_fallback: "1" } };
    }
    try {
      const session = await this.ort.InferenceSession.create(new Uint8Array(bytes), options);
      const model = new Model(session, this.feeds(session), this.provider);
      await model.run();
      return model;
    } catch (error) {
      throw failed(error, this.provider);
    }
  }

  feeds(session) {
    const random = generator(1);
    const tensors = session.inputMetadata.map(({ name, type, shape }) => {
      if (type !== "float32" || shape.some((size) => typeof size !== "number")) {
        throw new Error(`input ${name} is ${type} [${shape}], expected float32 of static shape`);
      }
      const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
      return [name, new this.ort.Tensor("float32", values.map(() => random() * 2 - 1), shape)];
    });
    return Object.fromEntries(tensors);
  }
}

class Model {
  constructor(session, feeds, provider) {
    Object.assign(this, { session, feeds, provider });
  }

  run() {
    return this.session.run(this.feeds);
  }

  release() {
    return this.session.release();
  }
}

/** `error` of the runtime as a RuntimeFailed. */
export function failed(error, provider) {
  if (error instanceof RuntimeFailed) return error;
  const detail = `ONNX Runtime Web: ${error?.message ?? error}`.slice(0, 500);
  if (error instanceof RangeError || NO_MEMORY.test(detail)) {
    return new RuntimeFailed("out_of_memory", detail);
  }
  if (error instanceof WebAssembly.RuntimeError || TRAP.test(detail)) {
    return new RuntimeFailed("crashed", detail);
  }
  const notThere = provider !== "wasm" && /fallback|backend|adapter|assigned/i.test(detail);
  return new RuntimeFailed(notThere ? "wrong_provider" : "refused", detail);
}

async function fetchBytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} answers ${answer.status}`);
  return answer.arrayBuffer();
}

/** Mulberry32: the same numbers in [0, 1) each time. */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
