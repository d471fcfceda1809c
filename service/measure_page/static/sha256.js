// SHA-256 (FIPS 180-4). WebCrypto exists only in secure contexts, and a phone on the local
// network usually opens this page over plain http; the hash of a model is checked there too.

const CONSTANTS = fractions(64, Math.cbrt);
const START = fractions(8, Math.sqrt);

/** Lower-case hexadecimal SHA-256 of `bytes` (a Uint8Array). */
export function sha256(bytes) {
  const state = Uint32Array.from(START);
  const words = new Uint32Array(64);
  const padded = pad(bytes);
  for (let at = 0; at < padded.length; at += 64) mix(state, words, padded, at);
  return Array.from(state, (word) => word.toString(16).padStart(8, "0")).join("");
}

function pad(bytes) {
  const padded = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(padded.length - 4, bytes.length * 8); // the lower 32 bits of the length in bits
  return padded;
}

function mix(state, words, padded, at) {
  const view = new DataView(padded.buffer, at, 64);
  for (let i = 0; i < 16; i++) words[i] = view.getUint32(i * 4);
  for (let i = 16; i < 64; i++) {
    const a = words[i - 15];
    const b = words[i - 2];
    words[i] =
      words[i - 16] +
      (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) +
      words[i - 7] +
      (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const first =
      (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) +
        CONSTANTS[i] + words[i]) | 0;
    const second =
      ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((word, i) => {
    state[i] += word;
  });
}

function turn(word, bits) {
  return (word >>> bits) | (word << (32 - bits));
}

/** The first 32 bits of the fractional parts of `root` of the first `n` primes. */
function fractions(n, root) {
  const found = [];
  for (let k = 2; found.length < n; k++) {
    let prime = true;
    for (let d = 2; d * d <= k; d++) prime &&= k % d !== 0;
    if (prime) found.push(Math.floor((root(k) % 1) * 2 ** 32));
  }
  return Uint32Array.from(found);
}
