// Users
db.users.createIndex({ email: 1 });
db.users.createIndex({ emailVerificationToken: 1 });
db.users.createIndex({ passwordResetToken: 1 });
db.users.createIndex({ deletedAt: 1 });
db.users.createIndex({ stripeCustomerId: 1 });

// Subscriptions
db.subscriptions.createIndex({ userId: 1, status: 1 });
db.subscriptions.createIndex({ stripeSubscriptionId: 1 });
db.subscriptions.createIndex({ status: 1 });
db.subscriptions.createIndex({ endDate: 1 });

// Payments
db.payments.createIndex({ userId: 1 });
db.payments.createIndex({ subscriptionId: 1 });
db.payments.createIndex({ status: 1 });
db.payments.createIndex({ stripePaymentIntentId: 1 });
db.payments.createIndex({ createdAt: -1 });

// Usage
db.usage.createIndex({ userId: 1, resourceType: 1, periodStart: 1 });
db.usage.createIndex({ periodStart: 1, periodEnd: 1 });
db.usage.createIndex({ resourceType: 1 });

// Projects
db.projects.createIndex({ userId: 1, deletedAt: 1 });
db.projects.createIndex({ createdAt: -1 });
db.projects.createIndex({ deletedAt: 1 });
db.projects.createIndex({ name: "text", description: "text" });

// API Keys
db.apikeys.createIndex({ userId: 1 });
db.apikeys.createIndex({ keyHash: 1 });
db.apikeys.createIndex({ expiresAt: 1 });
db.apikeys.createIndex({ revokedAt: 1 });

// Notifications
db.notifications.createIndex({ userId: 1, readAt: 1 });
db.notifications.createIndex({ type: 1 });
db.notifications.createIndex({ createdAt: -1 });

// Coupons
db.coupons.createIndex({ code: 1 });
db.coupons.createIndex({ active: 1 });
db.coupons.createIndex({ validFrom: 1, validUntil: 1 });
db.coupons.createIndex({ applicablePlans: 1 });

// Audit Logs
db.auditlogs.createIndex({ userId: 1 });
db.auditlogs.createIndex({ action: 1 });
db.auditlogs.createIndex({ resource: 1, resourceId: 1 });
db.auditlogs.createIndex({ createdAt: -1 });
