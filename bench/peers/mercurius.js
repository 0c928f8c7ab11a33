// The stack that the specification implies, as fast as it reasonably goes: Fastify and Mercurius with JIT, Mongoose with lean
// reads, one process. The caller is taken from a header; there are no sessions, limits, logs or metrics.
import Fastify from "fastify";
import mercurius from "mercurius";
import mongoose from "mongoose";
import { GraphQLScalarType } from "graphql";
import { models } from "./models.js";

const { uri, database, things } = JSON.parse(process.env.XIMLER_BENCH);

const schema = `
  scalar DateTime
  scalar Long
  type Query {
    me: User
    projects(first: Int = 20, after: String): ProjectConnection!
    plans: [Plan!]!
    things: [Thing!]!
  }
  type User {
    id: ID! name: String! email: String! emailVerified: Boolean! createdAt: DateTime! updatedAt: DateTime!
    subscription: Subscription
    usage: [ResourceUsage!]!
    projects(first: Int = 20, after: String): ProjectConnection!
  }
  type Subscription {
    id: ID! planId: ID! plan: Plan status: String! startDate: DateTime! endDate: DateTime autoRenew: Boolean!
    price: Float! currency: String!
  }
  type Plan {
    id: ID! name: String! description: String price: Float! currency: String! interval: String! features: [String!]!
    limits: PlanLimits! active: Boolean!
  }
  type PlanLimits { projects: Long! storage: Float! apiCalls: Long! }
  type ResourceUsage { resource: String! used: Long! limit: Long remaining: Long }
  type Project {
    id: ID! name: String! description: String storageSize: Long! createdAt: DateTime! updatedAt: DateTime!
  }
  type ProjectConnection { nodes: [Project!]! pageInfo: PageInfo! }
  type PageInfo { hasNextPage: Boolean! endCursor: String }
  type Thing {
    id: ID! name: String! description: String kind: Kind! size: Int! price: Float! active: Boolean! owner: ID! note: String
  }
  enum Kind { ROUND SQUARE }
`;

const { User, Plan, Subscription, Usage, Project } = uri
  ? models(await mongoose.createConnection(uri, { dbName: database, autoIndex: false, autoCreate: false }).asPromise())
  : {};

const id = (parent) => parent._id.toHexString();
const GB = 1_000_000_000;

async function page(userId, { first, after }) {
  const where = { userId, deletedAt: null };
  if (after) {
    const [ms, last] = Buffer.from(after, "base64url").toString().split(":");
    const createdAt = new Date(Number(ms));
    where.$or = [{ createdAt: { $lt: createdAt } }, { createdAt, _id: { $lt: new mongoose.Types.ObjectId(last) } }];
  }
  const found = await Project.find(where, "name description storageSize createdAt updatedAt")
    .sort({ createdAt: -1, _id: -1 })
    .limit(first + 1)
    .lean();
  const hasNextPage = found.length > first;
  if (hasNextPage) found.pop();
  const last = found.at(-1);
  const endCursor = last ? Buffer.from(`${last.createdAt.getTime()}:${id(last)}`).toString("base64url") : null;
  return { nodes: found, pageInfo: { hasNextPage, endCursor } };
}

// One command for the subscription and its plan, shared by the two fields that want them.
const subscribed = (context) =>
  (context.subscribed ??= Subscription.aggregate([
    { $match: { userId: context.userId, status: "ACTIVE" } },
    { $limit: 1 },
    { $lookup: { from: "plans", localField: "planId", foreignField: "id", as: "plan" } },
    { $set: { plan: { $first: "$plan" } } },
  ]).then((found) => found[0] ?? null));

// Projects and storage are the sums of their signed rows, calls those of the month.
async function usage(context) {
  const now = new Date();
  const month = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1));
  const [rows, subscription] = await Promise.all([
    Usage.aggregate([
      { $match: { userId: context.userId } },
      { $match: { $or: [{ resourceType: { $ne: "apiCalls" } }, { periodStart: { $gte: month } }] } },
      { $group: { _id: "$resourceType", used: { $sum: "$amount" } } },
    ]),
    subscribed(context),
  ]);
  const { projects, storage, apiCalls } = subscription.plan.limits;
  const limits = { projects, storage: storage < 0 ? -1 : storage * GB, apiCalls };
  return Object.entries(limits).map(([resource, most]) => {
    const used = rows.find((row) => row._id === resource)?.used ?? 0;
    return { resource, used, limit: most < 0 ? null : most, remaining: most < 0 ? null : Math.max(0, most - used) };
  });
}

const resolvers = {
  DateTime: new GraphQLScalarType({ name: "DateTime", serialize: (value) => value.toISOString() }),
  Long: new GraphQLScalarType({ name: "Long", serialize: (value) => value }),
  Query: {
    me: (_root, _args, context) => User.findById(context.userId, "name email emailVerified createdAt updatedAt").lean(),
    projects: (_root, args, context) => page(context.userId, args),
    plans: async () => (await Plan.find({ active: true }).lean()).sort((a, b) => a.price - b.price),
    things: () => things,
  },
  User: {
    id,
    subscription: (_user, _args, context) => subscribed(context),
    usage: (_user, _args, context) => usage(context),
    projects: (user, args) => page(user._id, args),
  },
  Subscription: { id },
  Project: { id },
};

const app = Fastify({ logger: false });
app.register(mercurius, {
  schema,
  resolvers,
  jit: 1,
  context: (request) => {
    const caller = request.headers["x-user-id"];
    return { userId: caller ? new mongoose.Types.ObjectId(caller) : null };
  },
});
await app.listen({ host: "127.0.0.1", port: 0 });
console.log(JSON.stringify({ node: process.version, port: app.server.address().port }));
process.stdin.on("end", () => process.exit(0)).resume(); // whoever started it has ended
