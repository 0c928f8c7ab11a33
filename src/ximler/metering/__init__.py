"""How much each user may use, and how much they do. Owns `usage` and `gauges`; reads plans and subscriptions."""
