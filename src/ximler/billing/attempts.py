"""Limits on what an attacker repeats: declined payments, payment pages, and guesses of coupon codes.

Declined payments that a customer asked for are kept in the billing account, in the transaction that applies
the decline. Renewals and their retries do not count. Pages and guesses are counted by `accounts.throttle`,
per user and per network.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from ximler.accounts import throttle
from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import RateLimitKey, Rule
from ximler.billing.coupons import CouponExhausted, CouponExpired, CouponNotApplicable, CouponNotFound
from ximler.core.actor import Actor
from ximler.core.clock import from_ms, to_ms
from ximler.core.errors import LimitExceeded
from ximler.database import Database
from ximler.schema.billing_account import BillingAccount

__all__ = ["FREE_DECLINES", "TooManyDeclines", "count_decline", "guessing", "open_page", "refuse_declined"]

FREE_DECLINES = 5
_WINDOW = timedelta(hours=24)
_FIRST_DELAY = timedelta(minutes=15)

_HOUR = timedelta(hours=1)
_GUESSES = Rule(name="coupon, account", free=10, window=_HOUR, first_s=60, longest_s=3600)
_GUESSES_AT = Rule(name="coupon, address", free=50, window=_HOUR, first_s=60, longest_s=3600)  # an office
_PAGES = Rule(name="payment page, account", free=20, window=_HOUR, first_s=60, longest_s=3600)
_PAGES_AT = Rule(name="payment page, address", free=100, window=_HOUR, first_s=60, longest_s=3600)
_GUESSED = (CouponNotFound, CouponExpired, CouponExhausted, CouponNotApplicable)


class TooManyDeclines(LimitExceeded):
    code = "TOO_MANY_DECLINES"


def count_decline(account: BillingAccount, now: datetime) -> None:
    """A payment that the customer asked for was declined. `store` the locked account afterwards."""
    account.declined_ms = [*_recent(account, now), to_ms(now)]


def refuse_declined(account: BillingAccount, now: datetime) -> None:
    """Raises TooManyDeclines while the customer has to wait:
    15 minutes after the fifth decline within a day, then twice as long after each.
    """
    recent = _recent(account, now)
    if len(recent) < FREE_DECLINES:
        return
    left = from_ms(recent[-1]) + _FIRST_DELAY * 2 ** (len(recent) - FREE_DECLINES) - now
    if left > timedelta(0):
        minutes = -(-left // timedelta(minutes=1))
        raise TooManyDeclines(
            f"{len(recent)} payments were declined: try again in {minutes} minute{'s' if minutes > 1 else ''}",
            retry_after_s=left.total_seconds(),
        )


async def open_page(database: Database, keyring: Keyring, actor: Actor) -> None:
    """Count a payment page, where the provider checks cards. One round trip. Raises Throttled."""
    await throttle.spend(database, _keys(keyring, actor, _PAGES, _PAGES_AT))


@asynccontextmanager
async def guessing(database: Database, keyring: Keyring, actor: Actor, code: str | None) -> AsyncIterator[None]:
    """Around the use of a coupon code that the customer entered:
    codes that do not exist or cannot be used are counted.

    A code is counted before it is looked up, so concurrent guesses are limited as well; one that is valid is
    not counted in the end. Two round trips; none without a code. Raises Throttled.
    """
    if not code:
        yield
        return
    keys = _keys(keyring, actor, _GUESSES, _GUESSES_AT)
    await throttle.spend(database, keys)
    guessed = False
    try:
        yield
    except _GUESSED:
        guessed = True
        raise
    finally:
        if not guessed:
            await throttle.give_back(database, keys)


def _keys(keyring: Keyring, actor: Actor, by_user: Rule, by_address: Rule) -> list[RateLimitKey]:
    user = throttle.key(keyring, by_user, str(actor.require_user()))
    return [user, *throttle.at_address(keyring, by_address, actor.address)]


def _recent(account: BillingAccount, now: datetime) -> list[int]:
    since = to_ms(now - _WINDOW)
    return [each for each in account.declined_ms if each > since]
