// Excalidraw on a canvas of Ximler: what is drawn is saved by patches, and what others draw appears.
//
//   import { connect } from "/clients/excalidraw.js";
//   const drawing = await connect(api, { project, restore: (elements) => restoreElements(elements, null) });
//   …
//   await drawing.close();
//
// `api` is the imperative API that Excalidraw gives to its property `excalidrawAPI` (0.18). The server's order decides between
// changes of the same property, for all editors alike, so that all scenes become equal: `reconcileElements` lets each editor
// keep its own version of an element where the numbers say so. An element that the user is typing, resizing or drawing is
// left alone until that ends, as `reconcileElements` does. Images' pixels (`BinaryFiles`) are not saved.

import { Canvas, onLeaving } from "./ximler.js";

const INTERVAL_MS = 50; // between two looks at the scene: Excalidraw reports each movement of the pointer
const UNSAFE = ["__proto__", "constructor", "prototype"]; // Excalidraw assigns properties: these would change more than themselves

/** @typedef {Record<string, any>} Element */

/**
 * @typedef {object} More
 * @property {(elements: Element[]) => Element[]} [restore]  completes elements that other programs have saved in part:
 *   Excalidraw's `restoreElements`. Without it, they are not shown
 * @property {number} [interval]  milliseconds between two looks at the scene
 */
/** @typedef {import("./ximler.js").Options & More} Options */

/**
 * Keep the scene of `api` and a project's canvas equal. The canvas wins at the start; elements that it lacks are added to it.
 *
 * @param {any} api  Excalidraw's imperative API
 * @param {Options} options
 */
export async function connect(api, options) {
  const drawing = new Drawing(api, options);
  await drawing.canvas.open();
  drawing._begin();
  return drawing;
}

class Drawing {
  /**
   * @param {any} api
   * @param {Options} options
   */
  constructor(api, { restore = () => [], interval = INTERVAL_MS, onChange, ...options }) {
    this.api = api;
    this.canvas = new Canvas({ ...options, onChange: (ids) => (this._arrived(ids), onChange?.(ids)) });
    this.restore = restore;
    this.interval = interval;
    /** @type {Map<string, Element>} elements of the scene that the canvas has, as both had them last */
    this.known = new Map();
    /** @type {Map<string, string>} versions of deleted elements that the canvas does not have */
    this.deleted = new Map();
    /** @type {Set<string>} elements that others have changed since the scene was updated */
    this.stale = new Set();
  }

  /** Resolves when the scene is saved. */
  async flush() {
    this._look();
    await this.canvas.flush();
  }

  async close() {
    this._look();
    clearTimeout(this.timer);
    this.unsubscribe?.();
    this.stay?.();
    await this.canvas.close();
  }

  _begin() {
    this.begun = true;
    this._show();
    this._capture();
    this.unsubscribe = this.api.onChange(() => this._soon());
    this.stay = onLeaving(() => this._capture(), { capture: true }); // before the canvas keeps and sends it
  }

  _arrived(ids) {
    for (const id of ids ?? [...this.known.keys(), ...this.canvas.records.keys()]) this.stale.add(id);
    if (this.begun) this._soon();
  }

  _soon() {
    this.timer ??= setTimeout(() => this._look(), this.interval);
  }

  _look() {
    clearTimeout(this.timer);
    this.timer = null;
    this._capture(); // first: what is shown afterwards has it
    this._show();
  }

  /** Save what was drawn since the last look. */
  _capture() {
    for (const element of this.api.getSceneElementsIncludingDeleted()) {
      const before = this.known.get(element.id);
      if (before ? sameVersion(element, before) : this.deleted.get(element.id) === versionOf(element)) continue;
      const now = plain(element);
      if (!before) {
        if (!now.isDeleted) this._put(now);
        else this.deleted.set(now.id, versionOf(now));
      } else if (now.isDeleted && !before.isDeleted) {
        this.canvas.remove(now.id);
        this.known.delete(now.id);
        this.deleted.set(now.id, versionOf(now));
      } else {
        this._set(now, before);
      }
    }
  }

  _put(element) {
    this.canvas.put(element);
    this.known.set(element.id, element);
    this.deleted.delete(element.id);
  }

  _set(now, before) {
    if (Object.keys(before).some((name) => !Object.hasOwn(now, name))) return this._put(now); // `set` removes no property
    this.canvas.set(now.id, Object.fromEntries(Object.entries(now).filter(([name, value]) => !same(value, before[name]))));
    this.known.set(now.id, now);
  }

  /** Update the scene by what has arrived. */
  _show() {
    if (!this.stale.size) return;
    const scene = new Map(this.api.getSceneElementsIncludingDeleted().map((element) => [element.id, element]));
    const editing = edited(this.api.getAppState());
    const partial = [];
    let changed = false;
    for (const id of this.stale) {
      if (editing.has(id) && scene.has(id)) continue; // when that ends
      this.stale.delete(id);
      const record = this.canvas.record(id);
      if (typeof record?.id === "string" && typeof record.type === "string") {
        const element = plain(record);
        if (scene.has(id) && same(element, this.known.get(id))) continue;
        this.known.set(id, element);
        this.deleted.delete(id);
        if (!complete(element)) partial.push(element);
        else scene.set(id, plain(element));
        changed = true;
      } else if (this.known.delete(id) && scene.has(id)) {
        const gone = { ...scene.get(id), isDeleted: true, version: scene.get(id).version + 1, versionNonce: nonce() };
        scene.set(id, gone);
        this.deleted.set(id, versionOf(gone));
        changed = true;
      }
    }
    for (const element of this.restore(partial)) {
      scene.set(element.id, { ...element, version: element.version + 1, versionNonce: nonce() }); // and is saved like this
    }
    if (changed) this.api.updateScene({ elements: [...scene.values()].sort(inOrder), captureUpdate: "NEVER" }); // not undone here
  }
}

/** Ids of elements that the user is typing, resizing or drawing. */
function edited(state) {
  return new Set(["editingTextElement", "resizingElement", "newElement"].map((name) => state[name]?.id));
}

/** Whether Excalidraw can show an element as it is: its functions rely on these. */
function complete({ x, y, width, height, angle, opacity, version, groupIds, type, points, text }) {
  if (![x, y, width, height, angle, opacity, version].every(Number.isFinite) || !Array.isArray(groupIds)) return false;
  if (["line", "arrow", "freedraw"].includes(type)) return Array.isArray(points);
  return type !== "text" || typeof text === "string";
}

/** A copy as JSON has it: Excalidraw changes its elements in place. */
function plain(element) {
  return JSON.parse(JSON.stringify(element), (name, value) => (UNSAFE.includes(name) ? undefined : value));
}

function sameVersion(a, b) {
  return a.version === b.version && a.versionNonce === b.versionNonce;
}

function versionOf({ version, versionNonce }) {
  return `${version} ${versionNonce}`;
}

function nonce() {
  return Math.floor(Math.random() * 2 ** 31);
}

/** By fractional index, then by id, as Excalidraw orders elements; those without an index last, in the order that they have. */
function inOrder(a, b) {
  if (!a.index || !b.index) return Number(!a.index) - Number(!b.index);
  const [left, right] = a.index === b.index ? [a.id, b.id] : [a.index, b.index];
  return left < right ? -1 : Number(left > right);
}

function same(a, b) {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || !a || !b || Array.isArray(a) !== Array.isArray(b)) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => Object.hasOwn(b, name) && same(a[name], b[name]));
}
