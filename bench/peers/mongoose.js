// A Mongoose application that times itself. A line `verb` on standard input is answered by a line of JSON.
import { createInterface } from "node:readline";
import mongoose from "mongoose";
import { models } from "./models.js";

const [uri, database] = JSON.parse(process.env.XIMLER_BENCH);
const connection = await mongoose.createConnection(uri, { dbName: database, autoIndex: false, autoCreate: false }).asPromise();
const { Payment, Project } = models(connection);

// Plain objects, as an application has them before it stores them; made outside the time.
let plain = [];

// One property of a shape in the middle changes: load, change, save.
async function canvas() {
  const project = await Project.findOne({});
  const shape = project.canvasData.elements[project.canvasData.elements.length >> 1];
  Object.assign(shape, { x: shape.x + 1, version: shape.version + 1 });
  project.markModified("canvasData");
  return project.save();
}

const work = {
  canvas,
  hydrated: () => Payment.find({}),
  lean: () => Payment.find({}).lean(),
  insert: () => Payment.insertMany(plain),
};
const count = { canvas: (saved) => (saved ? 1 : 0), hydrated: (found) => found.length, lean: (found) => found.length, insert: (stored) => stored.length };

async function answer(verb) {
  if (verb === "load") {
    plain = await connection.collection("source").find({}).toArray();
    return { count: plain.length };
  }
  globalThis.gc();
  const began = performance.now();
  const result = await work[verb]();
  const seconds = (performance.now() - began) / 1e3;
  return { seconds, count: count[verb](result) };
}

console.log(JSON.stringify({ node: process.version, mongoose: mongoose.version }));
for await (const verb of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify(await answer(verb)));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
await connection.close();
