"""Plans, coupons, subscriptions and payments. Owns `plans`, `coupons`, `subscriptions` and `payments`."""
