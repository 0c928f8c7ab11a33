// The client against a server of a few lines: run by test_clients.py, with the module's address as argument.
import assert from "node:assert/strict";

import { Server } from "./editors.mjs";

const { Canvas, Outbox, Patch } = await import(process.argv[2]);
const settle = (ms = 5) => new Promise((resolve) => setTimeout(resolve, ms));

const server = new Server([{ id: "a", x: 0 }, { id: "b", x: 0 }]);
const heard = [];
const open = (client, more = {}) =>
  new Canvas({ project: "p", client, fetch: server.fetch, outbox: new Outbox("p"), ...more }).open();
const rejected = [];
const ada = await open("ada", { onChange: (ids) => heard.push(ids), onRejected: (ids) => rejected.push(...ids) });
const bob = await open("bob");

// One request is in flight; changes meanwhile are one patch.
let release;
server.held = new Promise((resolve) => (release = resolve));
ada.set("a", { x: 1 });
await settle();
ada.set("a", { x: 2 });
ada.set("a", { y: 3 });
ada.put({ id: "c" });
assert.deepEqual(ada.records.get("a"), { id: "a", x: 2, y: 3 });
assert.equal(server.sent.length, 1);
release();
server.held = null;
await ada.flush();
assert.deepEqual(server.sent[1], { client: "ada", seq: 2, put: [{ id: "c" }], set: { a: { x: 2, y: 3 } }, remove: [] });
await settle();
assert.deepEqual([...bob.records], [...server.records]);
assert.deepEqual([ada.unseen, bob.revision], [[], 2]);

// A lost answer: the same number again, applied once.
server.next.push("lost", new Response("", { status: 503 }));
bob.remove("c");
await bob.flush();
assert.deepEqual(server.sent.slice(-3).map(({ seq }) => seq), [1, 1, 1]);
assert.equal(server.revision, 3);

// Others' later change is shown, though the feed has it before the answer to the own one.
server.slow = new Promise((resolve) => (release = resolve));
const changes = heard.length;
ada.set("a", { x: 4 });
await settle();
server.save({ client: "bob", seq: 99, set: { a: { x: 5 } } });
await settle();
assert.equal(ada.records.get("a").x, 4); // for now
release();
server.slow = null;
await ada.flush();
assert.deepEqual([ada.records.get("a").x, heard.slice(changes)], [5, [["a"], ["a"], ["a"]]]);

// Delete wins over edit, and the other hears of it.
ada.set("c", { x: 1 });
await ada.flush();
assert.deepEqual(rejected, ["c"]);
assert.equal(ada.records.has("c"), false);

// What the server refuses is parked, and no longer shown.
server.next.push(Response.json({ status: 422, code: "INVALID" }, { status: 422 }));
ada.set("b", { x: "wrong" });
await ada.flush();
assert.equal(ada.parked[0].problem.code, "INVALID");
assert.equal(ada.records.get("b").x, 0);

// After a reload the canvas is read again.
server.records.set("z", { id: "z" });
server.revision += 5;
server.tell("reload", { revision: server.revision });
await settle();
assert.equal(ada.records.has("z"), true);
assert.equal(ada.revision, server.revision);

// Patches by position are applied to the records; what only the server can apply is read again.
const byPosition = (event, change, elements) => {
  server.records = new Map(elements.map((record) => [record.id, record]));
  server.tell(event, { revision: ++server.revision, ...change });
};
const [first, ...others] = server.records.values();
const reads = server.reads;
heard.length = 0;
const operations = [
  { op: "replace", path: "/elements/0/x", value: 6 },
  { op: "add", path: "/elements/1", value: { id: "new" } },
  { op: "add", path: "/title", value: "t" },
];
byPosition("json-patch", { patch: operations }, [{ ...first, x: 6 }, { id: "new" }, ...others]);
await settle();
byPosition("merge-patch", { merge: { title: null } }, [...server.records.values()]);
await settle();
for (const canvas of [ada, bob]) assert.deepEqual([...canvas.records], [...server.records]);
assert.deepEqual([heard, ada.revision, server.reads], [[["a", "new"], []], server.revision, reads]);
byPosition("json-patch", { patch: [{ op: "copy", from: "/kept", path: "/elements/-" }] }, [first, ...others, { id: "kept" }]);
await settle();
assert.deepEqual([[...ada.records], server.reads], [[...server.records], reads + 2]);

// Names that JavaScript's objects have already are names like others.
ada.put(JSON.parse('{"id": "__proto__", "__proto__": {"polluted": true}}'));
ada.set("__proto__", { constructor: 1 });
ada.set("a", JSON.parse('{"__proto__": {"polluted": true}}'));
await ada.flush();
assert.equal({}.polluted, undefined);
assert.equal(server.records.get("__proto__").constructor, 1);
assert.deepEqual(Object.keys(server.records.get("a")), ["id", "x", "y", "__proto__"]);

// Many changes go in several patches.
for (let n = 0; n < 1200; n++) ada.put({ id: `n${n}` });
await ada.flush();
assert.deepEqual(server.sent.slice(-3).map(({ put }) => put.length), [500, 500, 200]);

// What a page that has ended did not send, the next one sends, under the same name and number.
const outbox = new Outbox("p");
await outbox.save("dead", [{ seq: 4, patch: { put: [], set: { a: { x: 9 } }, remove: [] } }]);
const eve = await open("eve", { outbox });
assert.deepEqual([server.sent.at(-1).client, server.sent.at(-1).seq], ["dead", 4]);
assert.equal(eve.records.get("a").x, 9);
assert.deepEqual(await outbox.load(), []);

// While a request has no answer, changes are kept; a refusal for now is sent again with what has changed meanwhile.
const kept = async () => (await outbox.load()).map(({ patches }) => patches.map(({ patch }) => patch));
const delays = [];
const fay = await open("fay", { outbox, onDelay: (problem) => delays.push(problem?.status) });
server.held = new Promise((resolve) => (release = resolve));
server.next.push(Response.json({ status: 429 }, { status: 429 }));
fay.put({ id: "full" });
await settle();
fay.remove("full");
fay.set("a", { x: 10 });
await settle(250);
const removed = { put: [], set: { a: { x: 10 } }, remove: ["full"] };
assert.deepEqual(await kept(), [[{ put: [{ id: "full" }], set: {}, remove: [] }, removed]]);
release();
server.held = null;
await fay.flush();
assert.deepEqual([server.sent.at(-1), delays], [{ client: "fay", seq: 2, ...removed }, [429, undefined]]);
assert.deepEqual(await kept(), []);

// A session that has ended, and a server that cannot be reached, leave the patch in the outbox, for the next page.
const ends = [];
fay.handlers.onEnd = (status) => ends.push(status);
server.next.push(Response.json({}, { status: 401 }));
fay.set("a", { x: 11 });
await fay.close();
assert.deepEqual([ends, (await kept()).length], [[401], 1]);
const gus = await open("gus", { outbox });
assert.deepEqual([gus.records.get("a").x, await kept()], [11, []]);
server.next.push(...Array.from({ length: 9 }, () => "lost"));
gus.set("a", { x: 12 });
await settle();
gus.stopping.abort(); // as `close` does after a while
await gus.close();
assert.deepEqual(await kept(), [[{ put: [], set: { a: { x: 12 } }, remove: [] }]]);

// Of what an ended page left, nothing overtakes a part that is refused for now, nor the user's newer changes.
await outbox.save("gus", []);
server.next.length = 0;
const left = (x, y) => ({ put: [], set: { a: { x, y } }, remove: [] });
await outbox.save("dead2", [{ seq: 1, patch: left(20, 20) }, { seq: 2, patch: left(21, 21) }]);
server.next.push(Response.json({ status: 429 }, { status: 429 }));
const ivy = new Canvas({ project: "p", client: "ivy", fetch: server.fetch, outbox });
ivy.set("a", { x: 22 });
await ivy.open();
await ivy.flush();
assert.deepEqual([server.records.get("a").x, server.records.get("a").y, await kept()], [22, 21, []]);

// A refusal for now after a lost answer: the patch may have been saved, so it is sent again as it is.
server.next.push("lost", Response.json({ status: 429 }, { status: 429 }));
ivy.set("a", { x: 23 });
await settle();
ivy.set("a", { x: 24 });
await ivy.flush();
assert.deepEqual(server.sent.slice(-4).map(({ seq, set }) => [seq, set.a.x]), [[2, 23], [2, 23], [2, 23], [3, 24]]);
await ivy.close();

// A canvas that cannot be read for now is read later; one that is closed meanwhile is not.
const answers = [Response.json({}, { status: 429 }), Response.json({}, { status: 503 })];
const unready = async (path, options) => (options.method === "GET" && answers.shift()) || server.fetch(path, options);
await (await open("jay", { fetch: unready })).close();
assert.equal(answers.length, 0);
const closed = new Canvas({ project: "p", fetch: () => Promise.reject(new TypeError("offline")), outbox: new Outbox("p") });
const opening = assert.rejects(closed.open(), { name: "AbortError" });
await closed.close();
await opening;
await Promise.all([ada.close(), bob.close(), eve.close()]);
assert.equal(server.streams.size, 0);
console.log("ok");
