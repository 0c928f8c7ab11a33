"""Events from the payment provider. Owns `billingevents`.

`receive` verifies and stores an event; that document is the job. `handle` fetches the current state of the object that it
names, so that duplicates, delays and any order of delivery end in the same state. An unknown object waits: its charge may be
written a moment later.
"""

import contextlib
from datetime import timedelta

import structlog

from ximler.billing import checkouts, payments, refunds, stripe_mirror
from ximler.billing.provider import Mirrors, Provider
from ximler.core.errors import XimlerError
from ximler.database import Database
from ximler.database.codec import UnreadableDocument
from ximler.database.failures import DocumentExists
from ximler.database.updates import Update
from ximler.schema.billing_event import BILLING_EVENTS, BillingEvent

__all__ = ["handle", "process", "receive"]

_log = structlog.get_logger("ximler.billing")
_LEASE = timedelta(seconds=60)
_WAITS_S = (5, 30, 300, 3600, 6 * 3600)
_MOST_TRIES = 12


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
    with contextlib.suppress(DocumentExists):
        await database[BILLING_EVENTS].insert(event)
        return True
    return False


async def process(database: Database, provider: Provider) -> int:
    """Handle the events that wait; returns how many. Any number of processes may."""
    count = 0
    while True:
        now = database.clock.now()
        due = {"dueAt": {"$lte": now}, "tries": {"$type": "number"}}  # no other document could hold up the rest
        try:
            event = await database[BILLING_EVENTS].find_and_patch(
                due, {"$set": {"dueAt": now + _LEASE}, "$inc": {"tries": 1}}, sort=[("dueAt", 1)]
            )
        except UnreadableDocument as unreadable:  # it is claimed, and left until its lease expires
            _log.error("event cannot be read", reason=unreadable.message)
            continue
        if event is None:
            return count
        await handle(database, provider, event)
        count += 1


async def handle(database: Database, provider: Provider, event: BillingEvent) -> bool:
    """Apply one event; False where it has to wait."""
    problem = "unknown object"
    try:
        if await _apply(database, provider, event):
            done: Update = {"$set": {"doneAt": database.clock.now()}, "$unset": {"dueAt": "", "problem": ""}}
            await database[BILLING_EVENTS].patch({"_id": event.id}, done)
            return True
    except XimlerError as error:
        problem = f"{error.code}: {error.message}"
    except Exception as bug:  # of this event, or of the documents that it concerns: the others must not wait
        problem = f"{type(bug).__name__}: {bug}"
        _log.exception("event failed", event_id=event.id, kind=event.kind)
    if event.tries >= _MOST_TRIES:
        _log.error("event given up", event_id=event.id, kind=event.kind, reason=problem)
        given_up: Update = {"$set": {"doneAt": database.clock.now(), "problem": problem}, "$unset": {"dueAt": ""}}
        await database[BILLING_EVENTS].patch({"_id": event.id}, given_up)
        return False
    wait_s = _WAITS_S[min(event.tries, len(_WAITS_S)) - 1]
    later = {"$set": {"dueAt": database.clock.now() + timedelta(seconds=wait_s), "problem": problem}}
    await database[BILLING_EVENTS].patch({"_id": event.id}, later)
    return False


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
