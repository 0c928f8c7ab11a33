// Ximler's client for editors: saves a canvas's records as patches, and follows the changes of others.
//
//   import { Canvas } from "/clients/ximler.js";
//   const canvas = new Canvas({ project, onChange: ids => draw(canvas.records) });
//   await canvas.open();
//   canvas.set("shape-1", { x: 5 });   // also put(record), remove(id)
//
// `records` shows the saved canvas with one's own changes on top, whether they are saved yet or not. One request is in flight
// at a time; changes meanwhile go together with the next. Each patch has this client's name and a number, so that the server
// applies it once, however often it is sent. Unsaved patches are kept in IndexedDB, and sent by the next client that opens
// the project. A patch that the server refuses is parked: see `parked` and `onParked`.

const MEDIA_TYPE = "application/vnd.ximler.records+json";
const MAX_RECORDS = 500; // in a patch
const MAX_COMPARED = 5_000_000; // records of a patch times those of the canvas: half of what the server does
const MAX_KEEPALIVE = 60_000; // bytes that a browser sends for a page that is left
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 30_000;

/** @typedef {Record<string, any>} Shape */

/** Changes of records by id. Maps and spreads, because an id or property may be called `__proto__`. */
export class Patch {
  constructor({ put = [], set = {}, remove = [] } = {}, id = "id") {
    /** @type {Map<string, Shape>} */
    this.puts = new Map(put.map((record) => [record[id], record]));
    /** @type {Map<string, Shape>} */
    this.sets = new Map(Object.entries(set));
    this.removes = new Set(remove);
  }

  get size() {
    return this.puts.size + this.sets.size + this.removes.size;
  }

  ids() {
    return [...this.puts.keys(), ...this.sets.keys(), ...this.removes];
  }

  put(id, record) {
    this.sets.delete(id);
    this.removes.delete(id);
    this.puts.set(id, record);
  }

  set(id, properties) {
    if (this.removes.has(id)) return;
    const into = this.puts.has(id) ? this.puts : this.sets;
    into.set(id, { ...into.get(id), ...properties });
  }

  remove(id) {
    this.puts.delete(id);
    this.sets.delete(id);
    this.removes.add(id);
  }

  /** The first `count` changes, which are no longer part of this patch. */
  take(count) {
    const taken = new Patch();
    for (const name of ["puts", "sets", "removes"]) {
      for (const [id, value] of this[name].entries()) {
        if (taken.size === count) return taken;
        if (name === "removes") taken.removes.add(id);
        else taken[name].set(id, value);
        this[name].delete(id);
      }
    }
    return taken;
  }

  /** Changes `records` in place, as the server does: a property of a missing record is not set. */
  apply(records) {
    for (const id of this.removes) records.delete(id);
    for (const [id, record] of this.puts) records.set(id, record);
    for (const [id, properties] of this.sets) {
      if (records.has(id)) records.set(id, { ...records.get(id), ...properties });
    }
  }

  /** What `apply` makes of one record. */
  applied(id, record) {
    if (this.puts.has(id)) return this.puts.get(id);
    if (this.removes.has(id)) return undefined;
    return record && this.sets.has(id) ? { ...record, ...this.sets.get(id) } : record;
  }

  toJSON() {
    return { put: [...this.puts.values()], set: Object.fromEntries(this.sets), remove: [...this.removes] };
  }
}

/** Unsaved patches, by client, in IndexedDB; in memory where there is none. */
export class Outbox {
  constructor(project) {
    this.project = project;
    this.kept = new Map();
  }

  async _store(mode, act) {
    if (!globalThis.indexedDB) return act(null);
    this.database ??= new Promise((resolve, reject) => {
      const opening = indexedDB.open("ximler", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("outbox");
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    });
    const store = (await this.database).transaction("outbox", mode).objectStore("outbox");
    return new Promise((resolve, reject) => {
      const asked = act(store);
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
  }

  /** @returns {Promise<{client: string, patches: {seq: number, patch: object}[]}[]>} */
  async load() {
    if (!globalThis.indexedDB) return [...this.kept.values()];
    const all = await this._store("readonly", (store) => store.getAll());
    return all.filter((entry) => entry.project === this.project);
  }

  async save(client, patches) {
    const entry = { project: this.project, client, patches };
    if (!globalThis.indexedDB) return void (patches.length ? this.kept.set(client, entry) : this.kept.delete(client));
    const key = `${this.project} ${client}`;
    await this._store("readwrite", (store) => (patches.length ? store.put(entry, key) : store.delete(key)));
  }
}

export class Canvas {
  /**
   * @param {object} options
   * @param {string} options.project  the project's id
   * @param {string} [options.url]  Ximler's address; the page's own without it
   * @param {string} [options.token]  a session's token or an API key; the session's cookie without it
   * @param {string} [options.list]  the list of records, as in the project's settings
   * @param {string} [options.id]  the property with a record's id
   * @param {(ids: string[] | null) => void} [options.onChange]  after others' changes; null: any may have changed
   * @param {(ids: string[]) => void} [options.onRejected]  ids whose change was in vain, because others removed them
   * @param {(parked: object) => void} [options.onParked]  a patch that the server refused, with its problem
   */
  constructor({ project, url = "", token, list = "elements", id = "id", client, fetch, outbox, ...handlers }) {
    this.path = `${url}/v1/projects/${encodeURIComponent(project)}/canvas`;
    this.token = token;
    this.list = list;
    this.id = id;
    this.client = client ?? crypto.randomUUID().slice(-12); // short, because each patch has it three times
    this.fetch = fetch ?? globalThis.fetch.bind(globalThis);
    this.outbox = outbox ?? new Outbox(project);
    this.handlers = handlers;
    this.revision = -1;
    this.saved = new Map();
    this.unseen = []; // saved patches that the feed has not shown yet
    this.inFlight = null;
    this.pending = new Patch({}, id);
    this.seq = 0;
    this.parked = [];
    this.stopping = new AbortController();
  }

  /** The records with one's own changes on top, by id, in the canvas's order. */
  get records() {
    const records = new Map(this.saved);
    for (const { patch } of this.unseen) patch.apply(records);
    this.inFlight?.patch.apply(records);
    this.pending.apply(records);
    return records;
  }

  /** One of `records`, without a copy of all. */
  record(id) {
    const patches = [...this.unseen.map(({ patch }) => patch), this.inFlight?.patch, this.pending];
    return patches.reduce((record, patch) => (patch ? patch.applied(id, record) : record), this.saved.get(id));
  }

  async open() {
    await this._hold();
    await this._adopt();
    await this._read();
    this._leaving = () => this._leave();
    globalThis.addEventListener?.("pagehide", this._leaving);
    this.following = this._follow();
    return this;
  }

  put(record) {
    this.pending.put(record[this.id], record);
    this._changed();
  }

  set(id, properties) {
    this.pending.set(id, properties);
    this._changed();
  }

  remove(id) {
    this.pending.remove(id);
    this._changed();
  }

  /** Resolves when everything is saved or parked. */
  async flush() {
    this._changed();
    while (this.sending) await this.sending;
  }

  async close() {
    await this.flush();
    this.stopping.abort();
    globalThis.removeEventListener?.("pagehide", this._leaving);
    this._release?.();
    await this.following;
  }

  _changed() {
    this.sending ??= Promise.resolve()
      .then(() => this._send())
      .finally(() => (this.sending = null));
  }

  async _send() {
    while (this.pending.size && !this.stopping.signal.aborted) {
      const most = Math.floor(MAX_COMPARED / (this.saved.size + 1));
      this.inFlight = { seq: ++this.seq, patch: this.pending.take(Math.max(8, Math.min(MAX_RECORDS, most))) };
      await this._keep();
      const { answer, problem } = await this._deliver(this.client, this.inFlight);
      if (answer) {
        if (answer.revision > this.revision) this.unseen.push({ revision: answer.revision, patch: this.inFlight.patch });
        if (answer.rejected.length) this.handlers.onRejected?.(answer.rejected);
      }
      const parked = problem && { patch: this.inFlight.patch.toJSON(), problem };
      this.inFlight = null;
      if (parked) this._park(parked);
      await this._keep();
    }
  }

  /** Send a patch until the server answers it. */
  async _deliver(client, { seq, patch }) {
    const body = JSON.stringify({ client, seq, ...patch.toJSON() });
    for (let wait = FIRST_RETRY_MS; ; wait = Math.min(2 * wait, LONGEST_RETRY_MS)) {
      let after = 0;
      try {
        const answer = await this._ask("PATCH", { body, headers: { "Content-Type": MEDIA_TYPE } });
        if (answer.ok) return { answer: await answer.json() };
        if (answer.status < 500 && ![408, 425, 429].includes(answer.status)) {
          return { problem: await answer.json().catch(() => ({ status: answer.status })) };
        }
        after = 1000 * Number(answer.headers.get("retry-after") ?? 0);
      } catch (error) {
        if (this.stopping.signal.aborted) return {};
      }
      await this._pause(Math.max(after, wait * (0.5 + Math.random() / 2)));
    }
  }

  _park(parked) {
    this.parked.push(parked);
    this.handlers.onParked?.(parked);
    this.handlers.onChange?.(null); // the change is no longer shown
  }

  async _keep() {
    const patches = this.inFlight ? [{ seq: this.inFlight.seq, patch: this.inFlight.patch.toJSON() }] : [];
    if (this.pending.size) patches.push({ seq: this.seq + 1, patch: this.pending.toJSON() });
    await this.outbox.save(this.client, patches).catch(() => {}); // a full disk must not stop saving
  }

  /** Hold this client's name, so that no other page sends its patches. */
  _hold() {
    if (!globalThis.navigator?.locks) return;
    return new Promise((held) => {
      navigator.locks.request(this._lock(this.client), () => {
        held();
        return new Promise((release) => (this._release = release));
      });
    });
  }

  _lock(client) {
    return `ximler canvas ${client}`;
  }

  /** Send what pages that have ended did not. */
  async _adopt() {
    for (const { client, patches } of await this.outbox.load().catch(() => [])) {
      const send = async (lock = true) => {
        if (!lock) return;
        for (const { seq, patch } of patches) {
          const { problem } = await this._deliver(client, { seq, patch: new Patch(patch, this.id) });
          if (problem && problem.code !== "SEQ_PASSED") this._park({ patch, problem });
        }
        await this.outbox.save(client, []);
      };
      const locks = globalThis.navigator?.locks;
      await (locks ? locks.request(this._lock(client), { ifAvailable: true }, send) : send());
      if (client === this.client) this.seq = Math.max(this.seq, ...patches.map(({ seq }) => seq));
    }
  }

  async _leave() {
    const sent = this.inFlight === null && this.pending.size > 0;
    void this._keep();
    if (!sent) return;
    const body = JSON.stringify({ client: this.client, seq: this.seq + 1, ...this.pending.toJSON() });
    if (body.length < MAX_KEEPALIVE) {
      await this._ask("PATCH", { body, headers: { "Content-Type": MEDIA_TYPE }, keepalive: true }).catch(() => {});
    }
  }

  async _read() {
    const answer = await this._ask("GET", { cache: "no-cache" });
    if (!answer.ok) throw new Error(`The canvas cannot be read: ${answer.status}`);
    const content = await answer.json();
    const list = Array.isArray(content?.[this.list]) ? content[this.list] : [];
    this.saved = new Map(list.map((record) => [record?.[this.id], record]));
    this._reached(Number(answer.headers.get("canvas-revision")));
    this.handlers.onChange?.(null);
  }

  _reached(revision) {
    this.revision = revision;
    this.unseen = this.unseen.filter((each) => each.revision > revision);
  }

  async _follow() {
    let wait = FIRST_RETRY_MS;
    while (!this.stopping.signal.aborted) {
      try {
        const answer = await this._ask("GET", { to: `/changes?since=${this.revision}`, signal: this.stopping.signal });
        if ([401, 403, 404].includes(answer.status)) return this.handlers.onEnd?.(answer.status);
        if (answer.ok) {
          wait = FIRST_RETRY_MS;
          for await (const event of events(answer.body)) await this._heard(event);
        }
      } catch (error) {
        if (this.stopping.signal.aborted) return;
      }
      await this._pause(wait);
      wait = Math.min(2 * wait, LONGEST_RETRY_MS);
    }
  }

  async _heard({ event, data }) {
    const change = JSON.parse(data);
    if (event === "reload") return this._read();
    if (event !== "patch" || change.revision <= this.revision) return;
    if (change.revision !== this.revision + 1) return this._read();
    const patch = new Patch(change, this.id);
    patch.apply(this.saved);
    this._reached(change.revision);
    this.handlers.onChange?.(patch.ids());
  }

  _ask(method, { to = "", headers = {}, ...options } = {}) {
    const authorization = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    return this.fetch(this.path + to, { method, headers: { ...headers, ...authorization }, ...options });
  }

  _pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.stopping.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
  }
}

/** Server-Sent Events of a response's body. */
export async function* events(body) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of body) {
    text += decoder.decode(chunk, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = {};
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
      }
      if (fields.data !== undefined) yield fields;
    }
  }
}
