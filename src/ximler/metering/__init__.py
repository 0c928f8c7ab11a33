"""Metering: limits, quotas and usage of each user. Owns `usage` and `gauges`;
reads plans and subscriptions."""
