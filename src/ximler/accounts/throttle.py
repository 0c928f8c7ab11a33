"""Throttling of repeated attempts, with exponential delays. Counted in the database, so it holds across
processes.

A rule allows a number of free attempts per window. After that each attempt blocks its subject for a delay
that doubles, up to a maximum. Subjects are stored as keyed hashes. Counting is one atomic command, so the
last free attempt is never granted twice.
"""

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from ximler.accounts.keyring import Keyring
from ximler.core.errors import LimitExceeded
from ximler.core.networks import around, subscriber
from ximler.database import Database
from ximler.schema.throttle import THROTTLES, Throttle

__all__ = ["RateLimitKey", "Rule", "Throttled", "at_address", "check", "fail", "forgive", "give_back", "key", "spend"]

_SECOND_MS = 1000
_NEIGHBOURS = 8  # times the attempts of one address, for its /24 (IPv6: its /48)
_ONE_LESS = [{"$set": {"count": {"$subtract": ["$count", 1]}}}]


class Throttled(LimitExceeded):
    code = "TOO_MANY_ATTEMPTS"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`free` attempts in a `window` that begins with the first; then a delay of `first_s`, doubling up to
    `longest_s`.
    """

    name: str
    free: int
    window: timedelta
    first_s: int = 2
    longest_s: int = 900


class RateLimitKey(msgspec.Struct, frozen=True):
    """A rule, and the hash of its subject."""

    rule: Rule
    id: bytes


def key(keyring: Keyring, rule: Rule, subject: str) -> RateLimitKey:
    return RateLimitKey(rule, keyring.digest("throttle", f"{rule.name}|{subject}"))


def at_address(keyring: Keyring, rule: Rule, address: str | None) -> list[RateLimitKey]:
    """The rate-limit keys of a network address, and of the network around it: an IPv6 customer may have
    65,536 networks that count as one address each. None without an address (the command line).
    """
    if not address:
        return []
    network = msgspec.structs.replace(rule, name=f"{rule.name}'s network", free=_NEIGHBOURS * rule.free)
    return [key(keyring, rule, subscriber(address)), key(keyring, network, around(address, ipv4=24, ipv6=48))]


async def spend(database: Database, through: Iterable[RateLimitKey]) -> None:
    """Count an attempt that is expensive whether or not it succeeds. One command per key, in order.

    An attempt is not counted at the key that rejects it, so a caller who waits for `retry_after` gets
    through; nor at those after it, so that a blocked caller does not use up what others have in common with
    it. Raises Throttled.
    """
    now = database.clock.now()
    for each in through:
        before = await _count(database, each, now, when_blocked=False)
        check([before] if before else [], now)


async def fail(database: Database, through: Iterable[RateLimitKey]) -> None:
    """Count a failure. One command per key, concurrently."""
    now = database.clock.now()
    await asyncio.gather(*(_count(database, each, now, when_blocked=True) for each in through))


async def give_back(database: Database, through: Iterable[RateLimitKey]) -> None:
    """Take back an attempt that `spend` counted. One that began a delay stays counted. One command."""
    unblocked = [({"_id": each.id, "blockedUntil": None, "count": {"$gt": 0}}, _ONE_LESS) for each in through]
    await database[THROTTLES].recompute_each(unblocked)


async def forgive(database: Database, at: RateLimitKey) -> None:
    """Reset the count."""
    await database[THROTTLES].delete({"_id": at.id})


def check(found: Iterable[Throttle], now: datetime) -> None:
    """Raises Throttled, with the seconds to wait, if any subject is blocked."""
    until = max((each.blocked_until for each in found if each.blocked_until), default=now)
    if until > now:
        wait_s = max(1, round((until - now).total_seconds()))
        raise Throttled(f"Too many attempts: try again in {_spoken(wait_s)}", retry_after_s=wait_s)


async def _count(database: Database, at: RateLimitKey, now: datetime, *, when_blocked: bool) -> Throttle | None:
    """Count, and return the state before."""
    rule = at.rule
    running: dict[str, Any] = {"$gt": ["$expiresAt", now]}
    blocked: dict[str, Any] = {"$gt": ["$blockedUntil", now]}
    one_more: Any = {"$cond": [running, {"$add": ["$count", 1]}, 1]}
    until: Any = {
        "$add": [
            now,
            {
                "$multiply": [
                    _SECOND_MS,
                    {"$min": [rule.longest_s, {"$multiply": [rule.first_s, {"$pow": [2, _beyond(rule)]}]}]},
                ]
            },
        ]
    }
    counted = {"$cond": [{"$gte": ["$count", rule.free]}, until, "$$REMOVE"]}
    return await database[THROTTLES].recompute(
        {"_id": at.id},
        [
            {
                "$set": {
                    "count": one_more if when_blocked else {"$cond": [blocked, "$count", one_more]},
                    "expiresAt": {"$cond": [running, "$expiresAt", now + rule.window]},
                }
            },
            {"$set": {"blockedUntil": counted if when_blocked else {"$cond": [blocked, "$blockedUntil", counted]}}},
        ],
        upsert=True,
    )


def _beyond(rule: Rule) -> dict[str, Any]:
    """The number of doublings, bounded against overflow."""
    return {"$min": [{"$subtract": ["$count", rule.free]}, 30]}


def _spoken(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} second{'s' if seconds != 1 else ''}"
    return f"{-(-seconds // 60)} minutes"
