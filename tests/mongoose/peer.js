// A Mongoose application as a long-lived process: requests come in as lines of EJSON on stdin, answers go out on stdout in
// the order in which they are ready. It ends with its stdin. `XIMLER_PEER_URI` names the server; each request its database.
import { createInterface } from "node:readline";
import mongoose from "mongoose";
import { models } from "./models.js";

const { EJSON } = mongoose.mongo.BSON;
const connect = (options) => mongoose.createConnection(process.env.XIMLER_PEER_URI, options).asPromise();
const server = await connect({ autoIndex: false, autoCreate: false, maxPoolSize: 10 });
const applications = new Map();

function application({ database, unbound }) {
  const key = `${database} ${Boolean(unbound)}`;
  if (!applications.has(key)) {
    const connection = server.useDb(database, { noListener: true });
    applications.set(key, { connection, models: models(connection, { unbound }) });
  }
  return applications.get(key);
}

const plain = (value) => {
  if (Array.isArray(value)) return value.map(plain);
  return value instanceof mongoose.Document ? value.toObject({ virtuals: false, minimize: false }) : value;
};

// What became of each index that the model declares, in the order of declaration.
async function watched(Model, action) {
  const results = [];
  const note = (error, key) => results.push({ key: Object.entries(key), code: error?.code ?? null });
  Model.on("index-single-done", note);
  Model.once("error", () => {}); // Mongoose emits the first failure as well, and an unheard "error" ends the process
  try {
    const value = await action().catch((error) => (results.length ? null : Promise.reject(error)));
    return { results, value };
  } finally {
    Model.off("index-single-done", note);
    Model.removeAllListeners("error");
  }
}

function described(path) {
  const { required, ref, trim, lowercase, uppercase, unique } = path.options;
  const setters = Object.entries({ trim, lowercase, uppercase }).filter(([, on]) => on);
  return {
    type: path.instance,
    required: Boolean(required),
    default: typeof path.defaultValue === "function" ? null : (path.defaultValue ?? null),
    enum: path.enumValues?.length ? path.enumValues : null,
    setters: setters.map(([name]) => name),
    ref: ref ?? null,
    unique: Boolean(unique),
    items: path.embeddedSchemaType?.instance ?? null,
  };
}

const VERBS = {
  // Any static of a model: create, insertMany, updateOne, findOneAndUpdate, bulkWrite, find, deleteOne, …
  async call({ app, model, method, args }) {
    return plain(await app.models[model][method](...args));
  },

  // The driver below Mongoose: nothing cast, nothing stamped, nothing checked.
  async raw({ app, collection, method, args }) {
    const result = app.connection.collection(collection)[method](...args);
    return typeof result.toArray === "function" ? result.toArray() : result;
  },

  async save({ app, model, document, options, strict = true }) {
    return plain(await new app.models[model](document, null, { strict }).save(options));
  },

  // find, change in memory, save: what most applications do
  async change({ app, model, where, changes, calls = [], options }) {
    const found = await app.models[model].findOne(where).orFail();
    for (const [path, value] of Object.entries(changes ?? {})) found.set(path, value);
    for (const [path, method, ...args] of calls) found.get(path)[method](...args);
    return plain(await found.save(options));
  },

  // Hydrated documents, each with what its validation says
  async examine({ app, model, where }) {
    const found = await app.models[model].find(where).sort({ _id: 1 });
    return Promise.all(
      found.map(async (document) => ({
        document: plain(document),
        problem: await document.validate().then(
          () => null,
          (error) => error.message,
        ),
      })),
    );
  },

  async populate({ app, model, where, populate }) {
    const found = await app.models[model].findOne(where).populate(populate).orFail();
    return found.toObject({ virtuals: true, minimize: false });
  },

  // A start with Mongoose's own defaults: each model makes its collection and its indexes. By model, the error's code.
  async start({ database }) {
    const connection = await connect({ dbName: database });
    const codes = {};
    for (const [name, Model] of Object.entries(models(connection))) {
      codes[name] = await Model.init().then(() => null, (error) => error.code ?? String(error));
    }
    await connection.close();
    return codes;
  },

  async createIndexes({ app, model }) {
    const Model = app.models[model];
    return (await watched(Model, () => Model.createIndexes())).results;
  },

  async syncIndexes({ app, model }) {
    const Model = app.models[model];
    const dropped = await Model.diffIndexes();
    const { results } = await watched(Model, () => Model.syncIndexes());
    return { dropped: dropped.toDrop, results };
  },

  // A script for the mongosh prompt, as it is printed
  async script({ app, text }) {
    const pending = [];
    const collection = (name) =>
      new Proxy(app.connection.collection(name), {
        get: (target, method) => (...args) => pending.push([name, args[0], target[method](...args)]),
      });
    const db = new Proxy({}, { get: (_, name) => collection(name) });
    new Function("db", text)(db);
    return Promise.all(
      pending.map(async ([name, argument, promise]) => ({
        collection: name,
        argument,
        code: await promise.then(() => null, (error) => error.code ?? String(error)),
      })),
    );
  },

  describe({ app }) {
    return Object.entries(app.models).map(([name, Model]) => ({
      name,
      collection: Model.collection.name,
      timestamps: Model.schema.options.timestamps,
      fields: Object.entries(Model.schema.paths)
        .filter(([path]) => !["_id", "__v", "createdAt", "updatedAt"].includes(path))
        .map(([path, type]) => ({ path, ...described(type) })),
      indexes: Model.schema.indexes().map(([key, { unique }]) => ({ key: Object.entries(key), unique: Boolean(unique) })),
    }));
  },
};

const told = (reply) => EJSON.stringify(reply, { relaxed: false });

async function answer(line) {
  const { id, verb, ...request } = EJSON.parse(line);
  let reply;
  try {
    reply = told({ id, result: (await VERBS[verb]({ ...request, app: application(request) })) ?? null });
  } catch (error) {
    const fields = Object.keys(error.errors ?? {});
    reply = told({ id, error: { name: error.name, code: error.code ?? null, message: error.message, fields } });
  }
  process.stdout.write(`${reply}\n`);
}

const lines = createInterface({ input: process.stdin });
lines.on("line", answer);
lines.on("close", () => process.exit(0));
process.stdout.write("ready\n");
