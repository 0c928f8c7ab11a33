"""`billing run`: all steps of all accounts that are due now. Also a schedule of the worker.

Safe to repeat, to kill and to run concurrently: each step of an account is one transaction. An account whose
provider does not answer is tried again later and does not delay the others.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import msgspec
import structlog
from bson import ObjectId

from ximler.billing import checkouts, events, invoices, redemptions, renewals
from ximler.billing.provider import Provider
from ximler.billing.rails import NoProvider, rail
from ximler.billing.sandbox import Sandbox
from ximler.core.clock import EPOCH
from ximler.core.errors import Unavailable, XimlerError
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.database import Database, outbox
from ximler.database.changes import Change, Feed
from ximler.runtime import Part, background
from ximler.schema.billing_account import BILLING_ACCOUNTS
from ximler.schema.billing_event import BILLING_EVENTS
from ximler.schema.document import Identified

__all__ = ["Inbox", "Result", "forward", "run", "scheduled"]

_log = structlog.get_logger("ximler.billing")
_DUE = 1000  # accounts that are looked up at a time
_TOGETHER = 200  # accounts whose steps are taken together
_AT_ONCE = 2  # such batches, so that process and server both work
_WAIT = timedelta(minutes=5)
_MOST_ROUNDS = 20
_LOOK_EVERY_S = 5.0


class Result(msgspec.Struct, kw_only=True):
    """`accounts` counts an account once for each moment at which it was due. `waiting`: accounts that were
    not handled, because the provider did not answer or their state is invalid.
    """

    accounts: int = 0
    steps: int = 0
    events: int = 0
    coupons: int = 0
    checkouts: int = 0
    invoices: int = 0
    waiting: int = 0

    def add(self, other: "Result") -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@outbox.every("billing.run", timedelta(minutes=1))
async def scheduled(*, database: Database, settings: Settings) -> None:
    try:
        provider = rail(database, settings)
    except NoProvider:
        await redemptions.sweep(database)
        return
    await run(database, provider)


@background
def _events(*, database: Database, settings: Settings, feed: Feed) -> Part | None:
    try:
        return Part("billing.events", Inbox(database, rail(database, settings), feed).run, lease=True)
    except NoProvider:
        return None


class Inbox:
    """Handles the provider's events as they arrive: in one process, so that the provider is asked once."""

    def __init__(self, database: Database, provider: Provider, feed: Feed) -> None:
        self._database = database
        self._provider = provider
        self._wake = asyncio.Event()
        feed.subscribe([BILLING_EVENTS.name], self._heard)

    async def run(self, stop: asyncio.Event) -> None:
        unreachable = False
        while not stop.is_set():
            self._wake.clear()  # before looking: an event that arrives meanwhile sets it again
            try:
                await events.process(self._database, self._provider)
                unreachable = False
            except Unavailable as error:
                if not unreachable:
                    _log.warning("events wait", reason=error.message)
                unreachable = True
            await pause(stop, _LOOK_EVERY_S, self._wake)

    def _heard(self, change: Change) -> None:
        if change.operation == "insert":
            self._wake.set()


async def run(database: Database, provider: Provider, *, progress: Callable[[int], object] = lambda _: None) -> Result:
    """Do everything that is due at this moment. `progress` gets the number of accounts after each batch."""
    result = Result()
    for _ in range(_MOST_ROUNDS):
        await provider.advance()
        handled = await events.process(database, provider)
        ticked = await _tick_all(database, provider, lambda more: progress(result.accounts + more))
        result.events += handled
        result.add(ticked)
        if not handled and not ticked.steps:
            break
    result.coupons = await redemptions.sweep(database)
    result.checkouts = await checkouts.expire(database)
    result.invoices = await invoices.number(database)
    return result


async def forward(
    database: Database,
    sandbox: Sandbox,
    until: datetime,
    *,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
    progress: Callable[[datetime], None] = lambda _: None,
) -> Result:
    """Play time forward to `until`, instant by instant, by this process's clock. Of the sandbox only.

    `meanwhile` runs after each instant: the mails.
    """
    clock, result = database.clock, Result()
    offset = clock.offset_ms
    try:
        while True:
            result.add(await run(database, sandbox))
            if meanwhile is not None:
                await meanwhile()
            now = clock.now()
            if now >= until:
                return result
            found = await database[BILLING_ACCOUNTS].find({"nextAt": {"$gt": EPOCH}}, sort=[("nextAt", 1)], limit=1)
            instants = [each.next_at for each in found if each.next_at] + [until]
            if (due := await sandbox.due_at()) is not None:
                instants.append(due)
            following = min(max(min(instants), now + timedelta(seconds=1)), until)
            clock.offset_ms += -(-(following - now) // timedelta(milliseconds=1)) + 1
            progress(following)
    finally:
        clock.offset_ms = offset


async def _tick_all(database: Database, provider: Provider, progress: Callable[[int], object]) -> Result:
    result = Result()
    stuck: set[ObjectId] = set()  # still due: tried again in the next run
    # Runs in several processes begin at different accounts, so that they seldom conflict.
    begin = random.randrange(256)  # noqa: S311 (no secret)
    while True:
        due = {"nextAt": {"$lte": database.clock.now()}, "_id": {"$nin": list(stuck)}}
        found = await database[BILLING_ACCOUNTS].find(due, into=Identified, sort=[("nextAt", 1)], limit=_DUE)
        if not found:
            return result
        ids = sorted((each.id for each in found), key=lambda user_id: (user_id.binary[-1] - begin) % 256)
        batches = [ids[first : first + _TOGETHER] for first in range(0, len(ids), _TOGETHER)]

        async def work(batches: list[list[ObjectId]] = batches) -> None:
            while batches:
                stuck.update(await _tick(database, provider, batches.pop(0), result))
                progress(result.accounts)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(batches))):
                    group.create_task(work())
        except ExceptionGroup as failed:  # the database is unavailable
            raise failed.exceptions[0] from None


async def _tick(database: Database, provider: Provider, user_ids: list[ObjectId], result: Result) -> set[ObjectId]:
    """Take the due steps of accounts. A failure, also by a bug, concerns its account only;
    returns those that are due still.
    """
    stuck = set()
    for user_id, steps in (await renewals.tick_each(database, provider, user_ids)).items():
        if isinstance(steps, XimlerError):
            _log.warning("account waits", user=str(user_id), reason=steps.message)
        elif isinstance(steps, Exception):
            _log.error("account waits", user=str(user_id), exc_info=steps)
        else:
            result.steps += steps
            result.accounts += 1
            if steps < renewals.MOST_STEPS:
                continue
        result.waiting += 1
        now = database.clock.now()
        later = {"$set": {"nextAt": now + _WAIT}}
        try:
            await database[BILLING_ACCOUNTS].patch({"_id": user_id, "nextAt": {"$lte": now}}, later)
        except Unavailable:
            raise
        except XimlerError:  # the account refuses every change
            stuck.add(user_id)
    return stuck
