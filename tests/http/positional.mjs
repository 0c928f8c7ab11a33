// The client's patches by position beside the server's: run by test_clients.py, with the cases on standard input.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const { merged, patched } = await import(process.argv[2]);
for (const [{ elements }, change, expected] of JSON.parse(readFileSync(0, "utf8"))) {
  const before = structuredClone(elements);
  const after = Array.isArray(change) ? patched(elements, "elements", change) : merged(elements, "elements", change);
  assert.deepEqual(elements, before);
  if (after) assert.deepEqual(after.list, expected.elements);
  else assert.ok(change.some(({ path, from = "/elements" }) => path === "" || !`${from}/`.startsWith("/elements/")));
}
console.log("ok");
