// Ximler's client for editors: saves a canvas's records as patches, and follows the changes of others.
//
//   import { Canvas } from "/clients/ximler.js";
//   const canvas = new Canvas({ project, onChange: ids => draw(canvas.records) });
//   await canvas.open();
//   canvas.set("shape-1", { x: 5 });   // also put(record), remove(id)
//
// `records` shows the saved canvas with one's own changes on top, whether they are saved yet or not. One request is in flight
// at a time; changes meanwhile go together with the next. Each patch has this client's name and a number, so that the server
// applies it once, however often it is sent. Unsaved patches are kept in IndexedDB, and sent by the next page that opens the
// project once the page that made them has ended. A patch that the server refuses is parked: see `parked` and `onParked`.

import { merged, patched } from "./positional.js";

const MEDIA_TYPE = "application/vnd.ximler.records+json";
const MAX_RECORDS = 500; // in a patch
const MAX_COMPARED = 5_000_000; // records of a patch times those of the canvas: half of what the server does
const MAX_CHARACTERS = 1_000_000; // of a patch of several records
const MAX_KEEPALIVE = 20_000; // characters: a browser sends 64 kB for a page that has been left
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 30_000;
const LONGEST_ANSWER_MS = 60_000;
const LONGEST_SILENCE_MS = 40_000; // of the stream, which has a ping every 15 seconds
const KEEP_MS = 200; // changes during a request are kept in the outbox this often
const LONGEST_CLOSE_MS = 5_000;
const WORTH_RETRYING = [408, 425, 429]; // statuses below 500

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

  /** The first changes, at most `count`, which are no longer part of this patch. */
  take(count) {
    const taken = new Patch();
    let characters = 0;
    for (const name of ["puts", "sets", "removes"]) {
      for (const [id, value] of this[name].entries()) {
        characters += JSON.stringify(value).length;
        if (taken.size === count || (taken.size && characters > MAX_CHARACTERS)) return taken;
        if (name === "removes") taken.removes.add(id);
        else taken[name].set(id, value);
        this[name].delete(id);
      }
    }
    return taken;
  }

  /** The changes of both, `later` after this. */
  with(later) {
    for (const id of later.removes) this.remove(id);
    for (const [id, record] of later.puts) this.put(id, record);
    for (const [id, properties] of later.sets) this.set(id, properties);
    return this;
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

/** Call `act` when the page may end now; returns a function that ends that. */
export function onLeaving(act, options) {
  /** @type {[EventTarget, string][]} */
  const places = globalThis.document ? [[window, "pagehide"], [document, "visibilitychange"]] : [];
  for (const [place, event] of places) place.addEventListener(event, act, options);
  return () => places.forEach(([place, event]) => place.removeEventListener(event, act, options));
}

/**
 * Unsaved patches, by client, in IndexedDB; in memory where there is none. What changed last before a page ends is in
 * localStorage instead, because transactions that begin then are not always committed.
 */
export class Outbox {
  constructor(project) {
    this.project = project;
    this.kept = new Map();
  }

  async open() {
    if (!globalThis.indexedDB) return;
    this.database = await new Promise((resolve, reject) => {
      const opening = indexedDB.open("ximler", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("outbox");
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    });
  }

  close() {
    this.database?.close();
    this.database = null;
  }

  /** @returns {Promise<{client: string, patches: {seq: number, patch: object}[]}[]>} */
  async load() {
    if (!this.database) return [...this.kept.values()];
    const all = (await this._ask("readonly", (store) => store.getAll())).filter(({ project }) => project === this.project);
    const latest = Object.entries(localStorage).filter(([key]) => key.startsWith(this._key("")));
    return [...new Map([...all, ...latest.map(([, text]) => JSON.parse(text))].map((entry) => [entry.client, entry])).values()];
  }

  async save(client, patches, { leaving = false } = {}) {
    const entry = { project: this.project, client, patches };
    if (!this.database) return void (patches.length ? this.kept.set(client, entry) : this.kept.delete(client));
    const key = this._key(client);
    try {
      localStorage.removeItem(key); // what does not fit below must not leave an older one
      if (leaving && patches.length) localStorage.setItem(key, JSON.stringify(entry));
    } catch {
      // It is full or forbidden: IndexedDB is what is left.
    }
    await this._ask("readwrite", (store) => (patches.length ? store.put(entry, key) : store.delete(key)));
  }

  _key(client) {
    return `ximler canvas ${this.project} ${client}`;
  }

  _ask(mode, act) {
    const transaction = this.database.transaction("outbox", mode);
    return new Promise((resolve, reject) => {
      const asked = act(transaction.objectStore("outbox"));
      transaction.oncomplete = () => resolve(asked.result);
      transaction.onabort = () => reject(transaction.error);
      transaction.commit?.();
    });
  }
}

/**
 * @typedef {object} Options
 * @property {string} project  the project's id
 * @property {string} [url]  Ximler's address; the page's own without it
 * @property {string} [token]  a session's token or an API key; the session's cookie without it
 * @property {string} [list]  the list of records, as in the project's settings
 * @property {string} [id]  the property with a record's id
 * @property {(ids: string[] | null) => void} [onChange]  after others' changes; null: any may have changed
 * @property {(ids: string[]) => void} [onRejected]  ids whose change was in vain, because others removed them
 * @property {(parked: object) => void} [onParked]  a patch that the server refused, with its problem
 * @property {(problem: object | null) => void} [onDelay]  changes cannot be saved for now (offline, the plan's storage
 *   is used up) and are sent again; null: they are saved again
 * @property {(status: number) => void} [onEnd]  the access to the project has ended; unsaved changes stay in the outbox
 * @property {string} [client]  this page's name; a random one without it
 * @property {typeof globalThis.fetch} [fetch]
 * @property {Outbox} [outbox]
 */

export class Canvas {
  /** @param {Options} options */
  constructor({ project, url = "", token, list = "elements", id = "id", client, fetch, outbox, ...handlers }) {
    this.path = `${url}/v1/projects/${encodeURIComponent(project)}/canvas`;
    this.token = token;
    this.list = list;
    this.id = id;
    this.client = client ?? randomName();
    this.fetch = fetch ?? globalThis.fetch.bind(globalThis);
    this.outbox = outbox ?? new Outbox(project);
    this.handlers = handlers;
    this.revision = -1;
    this.saved = new Map();
    this.exact = false; // `saved` has each element of the list, in its order
    this.unseen = []; // saved patches that the feed has not shown yet
    this.inFlight = null;
    this.pending = new Patch({}, id);
    this.seq = 0;
    this.parked = [];
    this.adopted = false; // the changes of ended pages, which come before one's own
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

  /** Resolves when the canvas is read, also if that is long after. Throws where it cannot be. */
  async open() {
    await this.outbox.open().catch(() => {}); // private windows of some browsers have none
    await this._hold();
    try {
      await this._adopt();
      this.adopted = true;
      for (let wait = FIRST_RETRY_MS; !(await this._reads()); wait = longer(wait)) await this._pause(wait);
      this.stopping.signal.throwIfAborted(); // closed meanwhile
    } catch (error) {
      this._leave();
      throw error;
    }
    this._delayed(null);
    this._stay = onLeaving(() => (this._keep({ leaving: true }), this._changed()));
    this.following = this._follow();
    this._changed();
    return this;
  }

  async _reads() {
    try {
      await this._read();
      return true;
    } catch (/** @type {any} */ error) {
      this.stopping.signal.throwIfAborted();
      if (error.status < 500 && !WORTH_RETRYING.includes(error.status)) throw error;
      this._delayed({ status: error.status ?? 0, detail: error.message });
      return false;
    }
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

  /** Save, and end. What cannot be saved within seconds stays in the outbox. */
  async close() {
    const late = setTimeout(() => this.stopping.abort(), LONGEST_CLOSE_MS);
    await this.flush();
    clearTimeout(late);
    this.stopping.abort();
    clearTimeout(this.keeping);
    this._stay?.();
    await this.following;
    await this._keep();
    this._leave();
  }

  _leave() {
    this.outbox.close();
    this._release?.();
  }

  _changed() {
    this.keeping ??= this.sending && setTimeout(() => this._keep(), KEEP_MS);
    this.sending ??= Promise.resolve()
      .then(() => this._send())
      .finally(() => {
        this.sending = null;
        if (this._due()) this._changed(); // since `_send` looked
      });
  }

  _due() {
    return this.adopted && this.pending.size && !this.inFlight && !this.stopping.signal.aborted;
  }

  async _send() {
    while (this._due()) {
      this.inFlight = { seq: ++this.seq, patch: this.pending.take(this._most()) };
      void this._keep();
      const { answer, problem, later, ended } = await this._deliver(this.client, this.inFlight);
      if (ended) return; // with the patch in the outbox
      let overtaken = [];
      if (answer) {
        if (answer.revision > this.revision) this.unseen.push({ revision: answer.revision, patch: this.inFlight.patch });
        else overtaken = this.inFlight.patch.ids(); // by the feed, maybe with others' later changes, which are shown now
        if (answer.rejected.length) this.handlers.onRejected?.(answer.rejected);
      }
      if (later) this.pending = this.inFlight.patch.with(this.pending);
      const parked = problem && { patch: this.inFlight.patch.toJSON(), problem };
      this.inFlight = null;
      if (overtaken.length) this.handlers.onChange?.(overtaken);
      if (parked) this._park(parked);
      await this._keep();
    }
  }

  /** Changes that may be sent at once. */
  _most() {
    return Math.max(8, Math.min(MAX_RECORDS, Math.floor(MAX_COMPARED / (this.saved.size + 1))));
  }

  /**
   * Send a patch until the server answers it, without a change: it may have been saved by an attempt whose answer was lost.
   * `later`: it has not been, and is to be sent again with what has changed meanwhile.
   */
  async _deliver(client, { seq, patch }) {
    const body = JSON.stringify({ client, seq, ...patch.toJSON() });
    const request = { body, headers: { "Content-Type": MEDIA_TYPE }, keepalive: body.length < MAX_KEEPALIVE };
    let uncertain = false; // an attempt whose answer was lost may have saved it
    for (let wait = FIRST_RETRY_MS; ; wait = longer(wait), request.keepalive = false) {
      let after = 0;
      let later = false;
      try {
        const answer = await this._ask("PATCH", { ...request, signal: this._within(LONGEST_ANSWER_MS) });
        if (answer.ok) {
          const saved = await answer.json();
          this._delayed(null);
          return { answer: saved };
        }
        const problem = await answer.json().catch(() => ({ status: answer.status }));
        if (answer.status === 401) return this._ended(401);
        if (answer.status < 500 && !WORTH_RETRYING.includes(answer.status)) return { problem };
        uncertain ||= answer.status !== 429;
        later = !uncertain;
        after = 1000 * (Number(answer.headers.get("retry-after")) || 0);
        this._delayed(problem);
      } catch (/** @type {any} */ error) {
        if (this.stopping.signal.aborted) return { ended: true };
        uncertain = true;
        this._delayed({ status: 0, detail: error.message });
      }
      await this._pause(Math.max(after, wait * (0.5 + Math.random() / 2)));
      if (later) return { later };
    }
  }

  _delayed(problem) {
    if (problem || this.delayed) this.handlers.onDelay?.(problem);
    this.delayed = problem;
  }

  _ended(status) {
    this.stopping.abort();
    this.handlers.onEnd?.(status);
    return { ended: true };
  }

  _park(parked) {
    this.parked.push(parked);
    this.handlers.onParked?.(parked);
    this.handlers.onChange?.(null); // the change is no longer shown
  }

  async _keep(options = {}) {
    clearTimeout(this.keeping);
    this.keeping = null;
    const patches = this.inFlight ? [{ seq: this.inFlight.seq, patch: this.inFlight.patch.toJSON() }] : [];
    if (this.pending.size) patches.push({ seq: this.seq + 1, patch: this.pending.toJSON() });
    await this.outbox.save(this.client, patches, options).catch(() => {}); // a full disk must not stop saving
  }

  /** Hold this client's name, so that no other page sends its patches. */
  _hold() {
    if (!globalThis.navigator?.locks) return;
    return new Promise((held) => {
      navigator.locks.request(this._lock(this.client), () => {
        held(null);
        return new Promise((release) => (this._release = () => release(null)));
      });
    });
  }

  _lock(client) {
    return `ximler canvas ${client}`;
  }

  /** Send what pages that have ended did not. */
  async _adopt() {
    const locks = globalThis.navigator?.locks;
    if (!locks && this.outbox.database) return; // without HTTPS: whether a page has ended is unknown
    for (const entry of await this.outbox.load().catch(() => [])) {
      if (locks) await locks.request(this._lock(entry.client), { ifAvailable: true }, (lock) => lock && this._inherit(entry));
      else await this._inherit(entry);
    }
  }

  async _inherit({ client, patches }) {
    const delayed = new Patch({}, this.id); // from the first part on that is to be sent later: the others come after it
    for (const { seq, patch } of patches) {
      const left = new Patch(patch, this.id);
      for (let next = seq; left.size; next++) {
        const part = left.take(this._most());
        if (delayed.size) {
          delayed.with(part);
          continue;
        }
        const { problem, later, ended } = await this._deliver(client, { seq: next, patch: part });
        if (ended) return; // and stay in the outbox
        if (later) delayed.with(part);
        if (problem && problem.code !== "SEQ_PASSED") this._park({ patch: part.toJSON(), problem });
      }
    }
    this.pending = delayed.with(this.pending); // which is the user's, and newer
    await this._keep();
    await this.outbox.save(client, []);
  }

  async _read() {
    const answer = await this._ask("GET", { cache: "no-cache", signal: this.stopping.signal });
    if (!answer.ok) {
      throw Object.assign(new Error(`The canvas cannot be read: ${answer.status}`), { status: answer.status });
    }
    const content = await answer.json();
    this._has(content?.[this.list]);
    this._reached(Number(answer.headers.get("canvas-revision")));
    this.handlers.onChange?.(null);
  }

  _has(list = []) {
    const records = Array.isArray(list) ? list : [];
    this.saved = new Map(records.map((record) => [record?.[this.id], record]));
    this.exact = records === list && this.saved.size === list.length;
  }

  _reached(revision) {
    this.revision = revision;
    this.unseen = this.unseen.filter((each) => each.revision > revision);
  }

  async _follow() {
    let wait = FIRST_RETRY_MS;
    while (!this.stopping.signal.aborted) {
      const silent = new AbortController();
      const signal = AbortSignal.any([this.stopping.signal, silent.signal]);
      let timer;
      const alive = () => {
        clearTimeout(timer);
        timer = setTimeout(() => silent.abort(), LONGEST_SILENCE_MS);
      };
      try {
        alive();
        const answer = await this._ask("GET", { to: `/changes?since=${this.revision}`, signal });
        if ([401, 403, 404].includes(answer.status)) return void this._ended(answer.status);
        if (answer.ok) {
          wait = FIRST_RETRY_MS;
          for await (const event of events(answer.body, alive)) await this._heard(event);
        }
      } catch {
        if (this.stopping.signal.aborted) return;
      } finally {
        clearTimeout(timer);
      }
      await this._pause(wait * (0.5 + Math.random() / 2));
      wait = longer(wait);
    }
  }

  /** @param {Record<string, string>} fields */
  async _heard({ event, data }) {
    const change = JSON.parse(data);
    if (event === "reload") return this._read();
    if (change.revision <= this.revision) return;
    const ids = change.revision === this.revision + 1 && this._applied(event, change);
    if (!ids) return this._read();
    this._reached(change.revision);
    this.handlers.onChange?.(ids);
  }

  /** Apply an event to `saved`; returns the ids with a change, or null where the canvas is to be read again. */
  _applied(event, change) {
    if (event === "patch") {
      const patch = new Patch(change, this.id);
      patch.apply(this.saved);
      return patch.ids();
    }
    if (!this.exact) return null;
    const before = this.saved;
    const list = [...before.values()];
    let after = null;
    if (event === "json-patch") after = patched(list, this.list, change.patch);
    if (event === "merge-patch") after = merged(list, this.list, change.merge);
    if (!after) return null;
    this._has(after.list);
    return [...new Set([...before.keys(), ...this.saved.keys()])].filter((id) => before.get(id) !== this.saved.get(id));
  }

  /**
   * @param {string} method
   * @param {RequestInit & {to?: string, headers?: Record<string, string>}} options
   */
  _ask(method, { to = "", headers = {}, ...options }) {
    /** @type {Record<string, string>} */
    const authorization = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    return this.fetch(this.path + to, { method, headers: { ...headers, ...authorization }, ...options });
  }

  /** Aborted by `close`, and after a time. */
  _within(milliseconds) {
    return AbortSignal.any([this.stopping.signal, AbortSignal.timeout(milliseconds)]);
  }

  _pause(milliseconds) {
    const { signal } = this.stopping;
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", end);
        resolve(null);
      };
      const timer = setTimeout(end, signal.aborted ? 0 : milliseconds);
      signal.addEventListener("abort", end);
    });
  }
}

function longer(wait) {
  return Math.min(2 * wait, LONGEST_RETRY_MS);
}

/** Short, because each patch has it three times. */
function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Server-Sent Events of a response's body; `heard` is called for each part of it. */
export async function* events(body, heard = () => {}) {
  const decoder = new TextDecoder();
  let text = "";
  const reader = body.getReader(); // Safari's streams cannot be iterated
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    heard();
    text += decoder.decode(value, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      /** @type {Record<string, string>} */
      const fields = {};
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
      }
      if (fields.data !== undefined) yield fields;
    }
  }
}
