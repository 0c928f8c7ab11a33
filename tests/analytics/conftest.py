"""Customers, and what billing's tests have: a sandbox, people who buy."""

from tests.billing.conftest import buy, buyer, rail

__all__ = ["buy", "buyer", "rail"]
