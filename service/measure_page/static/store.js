// What outlives a reload: who this device is, what it holds leases on, what is not yet
// acknowledged. Kept for each enrolment code, in localStorage, on this device only.

export class Store {
  constructor(code) {
    this.prefix = `tailor.${code}.`;
    this.memory = new Map(); // where the browser keeps nothing (private windows, full disks)
    this.lasting = true;
  }

  read(name) {
    const key = this.prefix + name;
    try {
      const text = this.memory.get(key) ?? localStorage.getItem(key);
      return text ? JSON.parse(text) : null;
    } catch {
      return null;
    }
  }

  write(name, value) {
    const key = this.prefix + name;
    const text = JSON.stringify(value);
    try {
      localStorage.setItem(key, text);
      this.memory.delete(key);
    } catch {
      this.lasting = false;
      this.memory.set(key, text);
    }
  }

  remove(name) {
    const key = this.prefix + name;
    this.memory.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      // nothing was kept
    }
  }

  names(start) {
    let kept = [];
    try {
      kept = Object.keys(localStorage);
    } catch {
      // nothing was kept
    }
    const prefix = this.prefix + start;
    return [...new Set([...kept, ...this.memory.keys()])]
      .filter((key) => key.startsWith(prefix))
      .map((key) => key.slice(this.prefix.length))
      .sort();
  }
}

/** Batches that the server has not acknowledged, oldest first; nothing else removes them. */
export class Journal {
  constructor(store) {
    this.store = store;
    this.open = null; // the batch that still grows; the rest is sealed
  }

  add(item) {
    this.open ??= { batch_id: newId(), at: Date.now(), items: [] };
    this.open.items.push(item);
    this.store.write(nameOf(this.open), this.open);
  }

  /** No batch grows after its first upload: the server knows it by its id. */
  seal() {
    this.open = null;
  }

  pending() {
    return this.store.names("batch.").map((name) => this.store.read(name)).filter(Boolean);
  }

  acknowledge(batch) {
    this.store.remove(nameOf(batch));
  }

  /** Set a batch aside that the server refuses as a whole; it would refuse it for ever. */
  refuse(batch, reason) {
    this.store.write(`refused.${batch.batch_id}`, { ...batch, reason });
    this.store.remove(nameOf(batch));
  }
}

function nameOf(batch) {
  return `batch.${String(batch.at).padStart(15, "0")}.${batch.batch_id}`;
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID wants https
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
