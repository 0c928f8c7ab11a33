"""Events from the payment provider. Owns `billingevents`.

`receive` verifies and stores an event; that document is the job. `handle` fetches the current state of the
object that it names, so that duplicates, delays and any order of delivery end in the same state. An unknown
object waits: its charge may be written a moment later.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import structlog
from bson import ObjectId
from msgspec import field

from ximler.billing import checkouts, payments, refunds, stripe_mirror
from ximler.billing.provider import Mirrors, Provider
from ximler.core.errors import Conflict, XimlerError
from ximler.core.together import Together
from ximler.database import Database
from ximler.database.codec import UnreadableDocument
from ximler.database.failures import DatabaseUnavailable
from ximler.database.updates import Update
from ximler.schema.billing_event import BILLING_EVENTS, BillingEvent
from ximler.schema.document import Document

__all__ = ["handle", "process", "receive"]

_log = structlog.get_logger("ximler.billing")
_LEASE = timedelta(seconds=60)
_FRESH = timedelta(seconds=5)
_WAITS_S = (5, 30, 300, 3600, 6 * 3600)
_MOST_TRIES = 12
_SUSPECT = 3
_TOGETHER = 200  # events that are claimed with one command
_AT_ONCE = 8


class _Due(Document, kw_only=True):
    """A pending event. Its content may have any type, so an unreadable event does not block the others."""

    id: Any = field(name="_id")
    kind: Any = None
    object_id: Any = None
    reference: Any = None
    due_at: Any = None
    tries: Any = None
    claim: Any = None

    @property
    def kills(self) -> bool:
        """Whether its process has died several times, after it had claimed the event."""
        return self.claim is not None and isinstance(self.tries, int | float) and self.tries >= _SUSPECT


async def receive(database: Database, provider: Provider, body: bytes, signature: str) -> bool:
    """Store a delivery; False for one that was stored before, or is of no concern. One command.

    Raises Unauthenticated, Invalid.
    """
    notice = provider.verify(body, signature)
    if notice is None:
        return False
    event = BillingEvent(
        id=notice.id,
        kind=notice.kind,
        object_id=notice.object_id,
        reference=notice.reference,
        due_at=database.clock.now(),
    )
    return await _receiving(id(database), (database, event))


async def _receive(_: int, waiting: list[tuple[Database, BillingEvent]]) -> list[bool]:
    database, _event = waiting[0]
    return await database[BILLING_EVENTS].insert_each([event for _, event in waiting])


_receiving = Together(_receive)  # deliveries that arrive at the same time


async def process(database: Database, provider: Provider) -> int:
    """Handle the events that wait; returns how many. Any number of processes may."""
    count = 0
    while True:
        # No other document could hold up the rest.
        due = {"dueAt": {"$lte": database.clock.now()}, "tries": {"$type": "number"}}
        found, fetched = await _due(database, due)
        if not found:
            return count
        if suspects := [each for each in found if each.kills]:
            found, fetched = suspects[:1], None  # alone, so that the others are not given up with it
        if fetched is not None and await _apply_alone(database, provider, found[0], fetched):
            return count + 1
        settled = await _settle(database, found) if len(found) > 1 else []
        count += len(settled)
        waiting = [each.id for each in found if each.id not in settled]
        if waiting and (claimed := await _claim(database, waiting, due)):
            await handle_each(database, provider, claimed)
            count += len(claimed)
        # Applying a payment's event makes no other event due, and new ones wake the caller.
        if not suspects and len(found) < _TOGETHER and all(each.kind == "intent.changed" for each in found):
            return count


async def _due(database: Database, due: dict[str, Any]) -> tuple[list[_Due], payments.Fetched | None]:
    """The pending events, and the documents that a payment's concerns, if it is the only one.
    One command for one, two for several."""
    order = {"dueAt": 1}
    fields = dict.fromkeys(_Due.__struct_encode_fields__, 1)
    one: list[dict[str, Any]] = [
        {"$match": due},
        {"$sort": order},
        {"$limit": 2},
        {"$project": fields},
        *payments.fetching("reference"),
    ]
    rows = await database[BILLING_EVENTS].aggregate(one)
    if len(rows) > 1:
        found = await database[BILLING_EVENTS].find(due, into=_Due, sort=list(order.items()), limit=_TOGETHER)
        return found, None
    fetched = [payments.Fetched.of(row) for row in rows]
    return database[BILLING_EVENTS].readable(rows, into=_Due), fetched[0] if rows else None


async def _apply_alone(database: Database, provider: Provider, event: _Due, fetched: payments.Fetched) -> bool:
    """Apply the event of a payment without a claim; False where it has to be claimed.

    Of several processes that do so at once one succeeds: the event is completed in the transaction that
    applies it. An event that has waited for long may have killed its process. It is claimed, so that its
    tries are counted.
    """
    now = database.clock.now()
    fresh = isinstance(event.due_at, datetime) and now.replace(tzinfo=None) - event.due_at < _FRESH and not event.tries
    if event.kind != "intent.changed" or not fresh:
        return False
    unclaimed = {"_id": event.id, "dueAt": event.due_at, "tries": event.tries}

    async def finish(database: Database) -> None:
        if not await database[BILLING_EVENTS].patch(unclaimed, _done(now)):
            raise Conflict("Another process handles the event")

    try:
        return await payments.observe_fetched(database, provider, event.object_id, fetched, finish=finish)
    except DatabaseUnavailable:
        raise
    except Exception as problem:
        event.tries = 1
        failed = {**_outcome(database, event, problem), "$inc": {"tries": 1}}
        await database[BILLING_EVENTS].patch(unclaimed, failed)
        return True


async def _settle(database: Database, found: Sequence[_Due]) -> list[Any]:
    """Finish events of payments that are already paid and can no longer change; returns their ids.

    After a run nearly all are: the provider's answer came before its event. Two commands, without a claim.
    """
    intents = {
        each.id: (each.reference, each.object_id)
        for each in found
        if each.kind == "intent.changed" and {type(each.id), type(each.reference), type(each.object_id)} == {str}
    }
    paid = await payments.paid_intents(database, {reference for reference, _ in intents.values()})
    settled = [event_id for event_id, intent in intents.items() if intent in paid]
    if settled:
        await _finish(database, settled)
    return settled


async def _claim(database: Database, ids: list[Any], due: dict[str, Any]) -> list[BillingEvent]:
    """The events of these that no other process has claimed. Those that cannot be read are claimed, too.

    Events are due again when their lease expires: after their process was killed, and after a broken
    connection, because the driver does not retry an update of several documents. Applying an event a second
    time changes nothing.
    """
    which: dict[str, Any] = {"_id": {"$in": ids}}
    claim = ObjectId()
    change: Update = {"$set": {"dueAt": database.clock.now() + _LEASE, "claim": claim}, "$inc": {"tries": 1}}
    if len(ids) > 1:
        await database[BILLING_EVENTS].patch_many(which | due, change)
        return await database[BILLING_EVENTS].find(which | {"claim": claim})
    try:
        event = await database[BILLING_EVENTS].find_and_patch(which | due, change)
    except UnreadableDocument as unreadable:
        _log.error("event cannot be read", reason=unreadable.message)
        return []
    return [event] if event else []


async def handle(database: Database, provider: Provider, event: BillingEvent) -> bool:
    """Apply one event; False where it has to wait."""
    return (await handle_each(database, provider, [event]))[event.id]


async def handle_each(database: Database, provider: Provider, events: Sequence[BillingEvent]) -> dict[str, bool]:
    """Apply events, those of payments together; False for one that has to wait, by its id."""
    results: dict[str, bool | Exception] = {
        each.id: RuntimeError("each process that handled it has died") for each in events if each.tries > _MOST_TRIES
    }
    of_intents = [each for each in events if each.kind == "intent.changed" and each.id not in results]
    if of_intents:
        try:
            intents = {each.object_id: each.reference for each in of_intents}
            seen = await payments.observe_each(database, provider, intents)
            results |= {each.id: seen[each.object_id] for each in of_intents}
        except Exception as problem:  # of one of them, if they are several
            _log.debug("events are handled one by one", reason=str(problem))
    others = asyncio.Semaphore(_AT_ONCE)

    async def apply(event: BillingEvent) -> None:
        async with others:
            try:
                results[event.id] = await _apply(database, provider, event)
            except Exception as problem:
                results[event.id] = problem

    await asyncio.gather(*(apply(each) for each in events if each.id not in results))
    await _finish(database, [each.id for each in events if results[each.id] is True])
    await database[BILLING_EVENTS].patch_each(
        ({"_id": each.id}, _outcome(database, each, result))
        for each in events
        if (result := results[each.id]) is not True
    )
    return {event_id: result is True for event_id, result in results.items()}


async def _finish(database: Database, ids: Sequence[Any]) -> None:
    """Mark applied events as done. Several cost the server half as much in a transaction."""

    async def write(database: Database) -> int:
        return await database[BILLING_EVENTS].patch_many({"_id": {"$in": list(ids)}}, _done(database.clock.now()))

    if ids:
        await (write(database) if len(ids) == 1 else database.transaction(write))


def _done(now: datetime) -> Update:
    return {"$set": {"doneAt": now}, "$unset": {"dueAt": "", "problem": ""}}


def _outcome(database: Database, event: BillingEvent | _Due, result: Literal[False] | Exception) -> Update:
    """Give the event up, or schedule another attempt."""
    now = database.clock.now()
    problem = "unknown object"
    if isinstance(result, XimlerError):
        problem = f"{result.code}: {result.message}"
    elif isinstance(result, Exception):  # of this event, or of the documents that it concerns: the others must not wait
        problem = f"{type(result).__name__}: {result}"
        _log.error("event failed", event_id=event.id, kind=event.kind, exc_info=result)
    if event.tries >= _MOST_TRIES:
        _log.error("event given up", event_id=event.id, kind=event.kind, reason=problem)
        return {"$set": {"doneAt": now, "problem": problem}, "$unset": {"dueAt": "", "claim": ""}}
    wait_s = _WAITS_S[min(event.tries, len(_WAITS_S)) - 1]
    return {"$set": {"dueAt": now + timedelta(seconds=wait_s), "problem": problem}, "$unset": {"claim": ""}}


async def _apply(database: Database, provider: Provider, event: BillingEvent) -> bool:
    match event.kind:
        case "checkout.completed":
            checkout = await checkouts.of_session(database, event.object_id)
            if checkout is None:
                return False
            await checkouts.complete(database, provider, checkout.id)
            return True
        case "intent.changed":
            return await payments.observe(database, provider, event.object_id, event.reference)
        case "refund.changed":
            if event.reference is None and isinstance(provider, Mirrors):
                return await stripe_mirror.refunded(database, provider, event.object_id)
            return await refunds.observe(database, provider, event.object_id, event.reference)
        case "dispute.changed":
            return await refunds.observe_dispute(database, provider, event.object_id)
        case "subscription.changed" if isinstance(provider, Mirrors):
            return await stripe_mirror.see_subscription(database, provider, event.object_id)
        case "invoice.changed" if isinstance(provider, Mirrors):
            return await stripe_mirror.see_invoice(database, provider, event.object_id)
        case _:
            return True  # of no concern to us
