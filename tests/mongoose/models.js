// The ten models of a Mongoose application that shares Ximler's database: same fields, types, options and indexes, the
// redundant index declarations included (a unique field that is also given a plain index).
import mongoose from "mongoose";

const { Schema } = mongoose;
const { Mixed, ObjectId } = Schema.Types;

const text = { type: String };
const requiredText = { type: String, required: true };
const number = { type: Number, required: true };
const date = { type: Date };
const requiredDate = { type: Date, required: true };
const mixed = { type: Mixed };
const owner = { type: ObjectId, ref: "User", required: true };
const currency = { type: String, default: "USD" };
const on = { type: Boolean, default: true };
const off = { type: Boolean, default: false };
const oneOf = (...values) => ({ type: String, enum: values, required: true });

const stamped = { timestamps: true };
const created = { timestamps: { createdAt: true, updatedAt: false } };

function schema(fields, options, indexes, virtuals = {}) {
  const made = new Schema(fields, options);
  for (const index of indexes) made.index(index);
  for (const [name, virtual] of Object.entries(virtuals)) made.virtual(name, virtual);
  return made;
}

const User = schema(
  {
    name: { type: String, required: true, trim: true },
    email: { type: String, required: true, unique: true, lowercase: true },
    password: requiredText,
    avatar: text,
    emailVerified: off,
    emailVerificationToken: text,
    passwordResetToken: text,
    passwordResetExpires: date,
    lastLogin: date,
    stripeCustomerId: text,
    notificationSettings: {
      email: { productUpdates: on, billingAlerts: on, securityAlerts: on },
      push: { enabled: off, productUpdates: on },
    },
    deletedAt: date,
  },
  { ...stamped, toJSON: { virtuals: true }, toObject: { virtuals: true } },
  [{ email: 1 }, { emailVerificationToken: 1 }, { passwordResetToken: 1 }, { deletedAt: 1 }, { stripeCustomerId: 1 }],
  {
    subscription: { ref: "Subscription", localField: "_id", foreignField: "userId", justOne: true },
    projects: { ref: "Project", localField: "_id", foreignField: "userId" },
    usage: { ref: "Usage", localField: "_id", foreignField: "userId" },
  },
);

const Plan = schema(
  {
    id: { type: String, unique: true, required: true },
    name: requiredText,
    description: text,
    price: number,
    currency,
    interval: oneOf("MONTH", "YEAR"),
    features: [text],
    limits: { projects: number, storage: number, apiCalls: number },
    stripePriceId: text,
    active: on,
  },
  stamped,
  [{ active: 1 }, { stripePriceId: 1 }, { id: 1 }],
);

const Subscription = schema(
  {
    userId: owner,
    planId: requiredText,
    status: oneOf("ACTIVE", "CANCELLED", "EXPIRED", "PAST_DUE"),
    startDate: requiredDate,
    endDate: date,
    autoRenew: on,
    price: number,
    currency,
    stripeSubscriptionId: text,
    stripeCustomerId: text,
  },
  stamped,
  [{ userId: 1, status: 1 }, { stripeSubscriptionId: 1 }, { status: 1 }, { endDate: 1 }],
  { plan: { ref: "Plan", localField: "planId", foreignField: "id", justOne: true } },
);

const Payment = schema(
  {
    userId: owner,
    subscriptionId: { type: ObjectId, ref: "Subscription" },
    amount: number,
    currency,
    status: oneOf("PENDING", "PAID", "FAILED", "REFUNDED"),
    description: text,
    stripePaymentIntentId: text,
    stripeInvoiceId: text,
    invoiceUrl: text,
    paidAt: date,
  },
  stamped,
  [
    { userId: 1 },
    { subscriptionId: 1 },
    { status: 1 },
    { stripePaymentIntentId: 1 },
    { stripeInvoiceId: 1 },
    { createdAt: -1 },
  ],
);

const Usage = schema(
  {
    userId: owner,
    resourceType: oneOf("projects", "storage", "apiCalls"),
    amount: number,
    periodStart: requiredDate,
    periodEnd: requiredDate,
    metadata: mixed,
  },
  created,
  [{ userId: 1, resourceType: 1, periodStart: 1 }, { periodStart: 1, periodEnd: 1 }, { resourceType: 1 }],
);

const Project = schema(
  {
    userId: owner,
    name: { type: String, required: true, trim: true },
    description: text,
    settings: mixed,
    canvasData: mixed,
    storageSize: { type: Number, default: 0 },
    deletedAt: date,
  },
  stamped,
  [{ userId: 1, deletedAt: 1 }, { createdAt: -1 }, { deletedAt: 1 }, { name: "text", description: "text" }],
);

const ApiKey = schema(
  {
    userId: owner,
    name: requiredText,
    keyHash: requiredText,
    permissions: [text],
    lastUsed: date,
    expiresAt: date,
    revokedAt: date,
  },
  created,
  [{ userId: 1 }, { keyHash: 1 }, { expiresAt: 1 }, { revokedAt: 1 }],
);

const Notification = schema(
  {
    userId: owner,
    type: oneOf("BILLING", "SECURITY", "PRODUCT", "SYSTEM"),
    title: requiredText,
    message: requiredText,
    readAt: date,
    metadata: mixed,
  },
  created,
  [{ userId: 1, readAt: 1 }, { type: 1 }, { createdAt: -1 }],
);

const Coupon = schema(
  {
    code: { type: String, required: true, unique: true, uppercase: true },
    name: requiredText,
    description: text,
    type: oneOf("PERCENTAGE", "FIXED"),
    value: number,
    currency,
    maxUses: { type: Number },
    usedCount: { type: Number, default: 0 },
    validFrom: requiredDate,
    validUntil: requiredDate,
    applicablePlans: [text],
    active: on,
  },
  stamped,
  [{ code: 1 }, { active: 1 }, { validFrom: 1, validUntil: 1 }, { applicablePlans: 1 }],
);

const AuditLog = schema(
  {
    userId: { type: ObjectId, ref: "User" },
    action: requiredText,
    resource: requiredText,
    resourceId: text,
    metadata: mixed,
    ipAddress: text,
    userAgent: text,
  },
  created,
  [{ userId: 1 }, { action: 1 }, { resource: 1, resourceId: 1 }, { createdAt: -1 }],
);

const SCHEMAS = { User, Plan, Subscription, Payment, Usage, Project, ApiKey, Notification, Coupon, AuditLog };

// The models on one connection. Unbound, Mongoose itself chooses the collections' names: Usage goes to `usages`.
export function models(connection, { unbound = false } = {}) {
  return Object.fromEntries(
    Object.entries(SCHEMAS).map(([name, made]) => [
      name,
      connection.model(name, made, name === "Usage" && !unbound ? "usage" : undefined),
    ]),
  );
}
