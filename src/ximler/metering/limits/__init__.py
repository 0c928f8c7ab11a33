"""Limits of each user: plans, overrides, and usage periods."""
