// HTTP with the server that served this page, and with no other.

/** The server answered with a problem document. */
export class Problem extends Error {
  constructor(status, code, detail, document = {}) {
    super(detail);
    Object.assign(this, { status, code, document });
  }

  /** Whether the same request may work later. */
  get passes() {
    return this.status >= 500 || this.status === 408 || this.status === 429;
  }
}

/** No answer: no network, or no server. */
export class Unreachable extends Error {}

/** How far the server's clock is ahead of this one, in ms; 0 while within 2 s. */
export let skewMs = 0;

/** JSON in, JSON out (bytes for `bytes: true`). Throws Problem or Unreachable. */
export async function call(method, path, options = {}) {
  const { token, body, bytes = false, seconds = 60, signal } = options;
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  const control = new AbortController();
  const timer = setTimeout(() => control.abort(), seconds * 1000);
  const stop = () => control.abort();
  signal?.addEventListener("abort", stop);
  try {
    const answer = await fetch(path, {
      method, headers, body: body && JSON.stringify(body), signal: control.signal,
      credentials: "omit", redirect: "error", cache: "no-store",
    });
    readClock(answer.headers.get("Date"));
    if (!answer.ok) throw await problem(answer);
    return bytes ? await answer.arrayBuffer() : await answer.json();
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Unreachable(`the server does not answer (${error.message})`);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}

async function problem(answer) {
  let document = {};
  try {
    document = await answer.json();
  } catch {
    // a proxy's page, for example; the status has to do
  }
  const text = document.detail ?? `the server answers ${answer.status}`;
  return new Problem(answer.status, document.code ?? "http_error", text, document);
}

function readClock(date) {
  const ahead = Date.parse(date) - Date.now();
  if (Number.isFinite(ahead)) skewMs = Math.abs(ahead) > 2000 ? ahead : 0;
}
