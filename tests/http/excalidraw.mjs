// The adapter between a scene like Excalidraw's and a canvas: run by test_clients.py, with the module's address as argument.
import assert from "node:assert/strict";

import { Server } from "./editors.mjs";

const { connect } = await import(process.argv[2]);
const settle = (ms = 15) => new Promise((resolve) => setTimeout(resolve, ms));

/** What the adapter uses of Excalidraw. */
class Scene {
  elements = [];
  state = {};
  updates = 0;
  listeners = new Set();
  getSceneElementsIncludingDeleted = () => this.elements;
  getAppState = () => this.state;
  onChange(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  updateScene({ elements, captureUpdate }) {
    assert.equal(captureUpdate, "NEVER");
    this.elements = elements;
    this.updates += 1;
    for (const listener of this.listeners) listener();
  }
  /** As the user does it: in place, with a new version. */
  edit(id, properties) {
    let element = this.elements.find((each) => each.id === id);
    if (!element) this.elements = [...this.elements, (element = { ...drawn(id), version: 0 })];
    Object.assign(element, properties, { version: element.version + 1, versionNonce: Math.random() });
    for (const listener of this.listeners) listener();
  }
  get(id) {
    return this.elements.find((each) => each.id === id && !each.isDeleted);
  }
}

function drawn(id, properties) {
  const place = { x: 0, y: 0, width: 9, height: 9, angle: 0, opacity: 100, groupIds: [], index: `a${id}`, points: [[0, 0]] };
  return { id, type: "line", ...place, version: 1, versionNonce: 1, isDeleted: false, ...properties };
}

const server = new Server([drawn("1"), drawn("2"), { id: "not an element" }]);
const restore = (elements) => elements.map((each) => drawn(each.id, each));
const open = (scene, client) => connect(scene, { project: "p", client, fetch: server.fetch, interval: 1, restore });
const [one, two] = [new Scene(), new Scene()];
one.elements = [drawn("1", { x: 99, version: 50 }), drawn("3", { link: "x" })]; // the canvas wins, what it lacks is added
const ada = await open(one, "ada");
const bob = await open(two, "bob");
const equal = async () => {
  for (let n = 0; n < 3; n++) await Promise.all([ada.flush(), bob.flush()]), await settle();
  const saved = [...server.records.values()].filter(({ type }) => type).sort((a, b) => (a.index < b.index ? -1 : 1));
  for (const scene of [one, two]) assert.deepEqual(scene.elements.filter((each) => !each.isDeleted), saved);
};
await equal();
assert.deepEqual([one.get("1").x, [...server.records.keys()]], [0, ["1", "2", "not an element", "3"]]);

// A change is saved by its properties, once, and shown without a loop.
const sent = server.sent.length;
const updates = two.updates;
one.edit("1", { x: 5 });
one.edit("1", { x: 6 });
await equal();
assert.deepEqual([server.sent.length - sent, two.updates - updates], [1, 1]);
assert.deepEqual(Object.keys(server.sent.at(-1).set["1"]), ["x", "version", "versionNonce"]);

// Both change an element: each property has the last change, though versions and nonces conflict.
one.edit("1", { x: 7 });
two.edit("1", { y: 8 });
await equal();
assert.deepEqual([one.get("1").x, one.get("1").y], [7, 8]);

// An element that is being edited is left alone until that ends.
one.state = { editingTextElement: one.get("2") };
two.edit("2", { x: 3 });
await bob.flush(), await settle();
assert.equal(one.get("2").x, 0);
one.state = {};
one.edit("2", { text: "typed" });
await equal();
assert.deepEqual([two.get("2").x, two.get("2").text], [3, "typed"]);

// Deleting wins, in either order; undoing it draws the element again.
one.edit("2", { isDeleted: true });
two.edit("2", { x: 4 });
await equal();
assert.deepEqual([one.get("2"), two.get("2"), server.records.has("2")], [undefined, undefined, false]);
one.edit("2", { isDeleted: false });
await equal();
assert.equal(two.get("2").text, "typed");

// A refused change is no longer shown.
server.next.push(Response.json({ status: 422 }, { status: 422 }));
one.edit("3", { x: "wrong" });
await equal();
assert.equal(one.get("3").x, 0);

// A property that an element has no more is gone everywhere; names that JavaScript's objects have do no harm.
delete one.get("3").link;
one.edit("3", {});
await equal();
assert.equal("link" in two.get("3"), false);
server.save({ client: "eve", seq: 1, put: [JSON.parse('{"id": "e", "type": "line", "__proto__": {"polluted": 1}, "index": "b"}')] });
for (let n = 0; n < 3; n++) await Promise.all([ada.flush(), bob.flush()]), await settle();
assert.equal(server.records.get("e").opacity, 100); // what lacks properties is completed, and saved
assert.equal(Object.getPrototypeOf(one.get("e")), Object.prototype);
assert.equal(two.get("e").polluted, undefined);
await Promise.all([ada.close(), bob.close()]);
assert.deepEqual([one.listeners.size, server.streams.size], [0, 0]);
console.log("ok");
