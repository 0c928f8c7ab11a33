"""Keeps the buckets of reports: computes marked ones, and every night all of them anew."""

from datetime import timedelta

import structlog

from ximler.analytics import buckets, cash, customers
from ximler.database import Database, outbox

__all__ = ["check", "rebuild", "roll_up", "wrong"]

_REPORTS = (cash.BUCKETS, customers.USED, customers.LARGEST)
_log = structlog.get_logger("ximler.analytics")


@outbox.every("analytics.roll_up", timedelta(minutes=10))
async def roll_up(*, database: Database) -> None:
    """Compute the buckets that are marked, or whose period is not over."""
    for report in _REPORTS:
        await buckets.again(database, report, {"dirty": True})


@outbox.daily("analytics.check_buckets", hour=3)
async def check(*, database: Database) -> None:
    """Compute anew the buckets that no change has marked, and correct those whose changes were missed."""
    missed = [name for report in _REPORTS for name in await buckets.again(database, report, {"dirty": None})]
    if missed:
        _log.warning("reports corrected", buckets=missed[:20], count=len(missed))


async def rebuild(database: Database) -> None:
    """Compute all buckets anew, on two of the server's processors."""
    for report in _REPORTS:
        await buckets.again(database, report, {}, at_once=2)


async def wrong(database: Database) -> list[str]:
    """The ids of buckets that are not marked, and differ from what their documents say. Read-only."""
    return [name for report in _REPORTS for name in await buckets.again(database, report, {"dirty": None}, store=False)]
