// Nothing runs here but what the server announced and signed.

import { sha256 } from "./sha256.js";

/** Hexadecimal SHA-256 of `bytes`, by the browser where it offers that. */
export async function digest(bytes) {
  if (!globalThis.crypto?.subtle) return sha256(bytes);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Whether the task carries the server's signature; null where the browser cannot tell
 * (no WebCrypto without https, and not every browser knows Ed25519).
 */
export async function isSigned(task, signingKey) {
  let key;
  try {
    key = await crypto.subtle.importKey("raw", fromBase64(signingKey), "Ed25519", false, [
      "verify",
    ]);
  } catch {
    return null;
  }
  const { target_id, subject, model_sha256, anchor_sha256 } = task;
  const text = ["tailor-task/1", target_id, subject, model_sha256, anchor_sha256].join("\n");
  try {
    const signature = fromBase64(task.signature);
    return await crypto.subtle.verify("Ed25519", key, signature, new TextEncoder().encode(text));
  } catch {
    return false;
  }
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
