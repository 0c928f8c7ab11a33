"""Events from the payment provider. Owns `billingevents`.

`receive` verifies and stores an event; that document is the job. `handle` fetches the current state of the
object that it names, so that duplicates, delays and any order of delivery end in the same state. An unknown
object waits: its charge may be written a moment later.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import structlog
from bson import ObjectId
from msgspec import field

from ximler.billing import checkouts, payments, refunds, stripe_mirror
from ximler.billing.provider import Mirrors, Provider
from ximler.core.errors import XimlerError
from ximler.core.together import Together
from ximler.database import Database
from ximler.database.codec import UnreadableDocument
from ximler.database.updates import Update
from ximler.schema.billing_event import BILLING_EVENTS, BillingEvent
from ximler.schema.document import Document

__all__ = ["handle", "process", "receive"]

_log = structlog.get_logger("ximler.billing")
_LEASE = timedelta(seconds=60)
_WAITS_S = (5, 30, 300, 3600, 6 * 3600)
_MOST_TRIES = 12
_TOGETHER = 200  # events that are claimed with one command
_AT_ONCE = 8


class _Due(Document, kw_only=True):
    """A pending event. Its content may have any type, so an unreadable event does not block the others."""

    id: Any = field(name="_id")
    kind: Any = None
    object_id: Any = None
    reference: Any = None


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
        found = await database[BILLING_EVENTS].find(due, into=_Due, sort=[("dueAt", 1)], limit=_TOGETHER)
        if not found:
            return count
        settled = await _settle(database, found) if len(found) > 1 else []
        count += len(settled)
        waiting = [each.id for each in found if each.id not in settled]
        if waiting and (claimed := await _claim(database, waiting, due)):
            await handle_each(database, provider, claimed)
            count += len(claimed)
        # Applying a payment's event makes no other event due, and new ones wake the caller.
        if len(found) < _TOGETHER and all(each.kind == "intent.changed" for each in found):
            return count


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
    results: dict[str, bool | Exception] = {}
    of_intents = [each for each in events if each.kind == "intent.changed"]
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
    done: Update = {"$set": {"doneAt": database.clock.now()}, "$unset": {"dueAt": "", "problem": ""}}

    async def write(database: Database) -> int:
        return await database[BILLING_EVENTS].patch_many({"_id": {"$in": list(ids)}}, done)

    if ids:
        await (write(database) if len(ids) == 1 else database.transaction(write))


def _outcome(database: Database, event: BillingEvent, result: Literal[False] | Exception) -> Update:
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
        return {"$set": {"doneAt": now, "problem": problem}, "$unset": {"dueAt": ""}}
    wait_s = _WAITS_S[min(event.tries, len(_WAITS_S)) - 1]
    return {"$set": {"dueAt": now + timedelta(seconds=wait_s), "problem": problem}}


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
