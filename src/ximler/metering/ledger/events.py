"""Recorded usage events: each is counted once, however often it is sent, and each has an outcome.

An event's identity is its second and a hash of its source and id. With this key the index of counted events
grows at its end, which keeps it fast at any size (docs/decisions/0015). So a repeated event must have the
same time: when it happened, not when it was sent.

`record` returns when the events are stored with majority, together with their sums; `settlement` adds the
sums to the ledger and the quotas within about a second, each exactly once.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Literal

import cachebox
import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.clock import EPOCH
from ximler.core.errors import Forbidden, Invalid
from ximler.database import Database
from ximler.metering.quota.bursts import Bursts
from ximler.schema.usage import ResourceType
from ximler.schema.usage_batch import USAGE_BATCHES, UsageBatch
from ximler.schema.usage_event import USAGE_EVENTS

__all__ = ["MAX_BATCH", "SCOPE", "Event", "Outcome", "Status", "record", "require_recorder"]

MAX_BATCH = 20_000  # 3 MB of oplog in one transaction, a third of a second
MAX_AMOUNT = 1_000_000_000  # keeps the sum of an hour far below 2^63
MAX_TEXT = 200  # characters of an id, and of a source
EARLIEST = timedelta(days=90)
LATEST = timedelta(minutes=5)
SCOPE = "usage:write"
_RESOURCE: ResourceType = "apiCalls"
_HEX = re.compile(r"[0-9a-f]{24}")
_SECOND = timedelta(seconds=1)
_HOUR = 3600
_LAST_SECOND = 2**32 - 1  # the latest time of an ObjectId
_KNOWN_FOR_S = 30.0

_DAILY = 1_000_000  # events of a user's keys, per process: each is stored for good, in 57 bytes
_daily = Bursts(
    "all API keys of this account together",
    rate=_DAILY / 86_400,
    size=_DAILY,
    limit=f"{_DAILY:,} records of usage a day",
)

Status = Literal["ACCEPTED", "DUPLICATE", "CONFLICT", "INVALID"]


class Event(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """An event from a client. `id` is unique within `source`; `at` is when it happened; `user_id` defaults to
    the owner of the API key.
    """

    id: str
    at: datetime
    amount: int | float = 1  # 1.0 is 1, as some JSON encoders write it
    resource: str = _RESOURCE
    source: str = ""
    user_id: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of an event. CONFLICT: an event of the same identity was counted for another user or
    amount.
    """

    status: Status
    reason: str | None = None


_ACCEPTED = Outcome("ACCEPTED")
_DUPLICATE = Outcome("DUPLICATE")


# A valid event: (key, position in the batch, user, amount, hour since 1970, source, why it is rejected unless
# counted earlier). A plain tuple with the user as text, for speed: a batch has 20,000.
_Candidate = tuple[bytes, int, str, int, int, str, str | None]


class _Decision(msgspec.Struct):
    documents: list[dict[str, Any]]
    sums: dict[tuple[str, int, str], int]  # by user, hour and source
    outcomes: dict[int, Outcome]


def require_recorder(actor: Actor) -> None:
    """Require an operator, or an API key with the scope for recording.

    Raises Unauthenticated, Forbidden.
    """
    if actor.kind in ("operator", "system") and (actor.via != "api_key" or SCOPE in actor.scopes):
        return
    actor.require_user()
    if actor.via != "api_key" or SCOPE not in actor.scopes:
        raise Forbidden(f"Usage is recorded by operators, and with API keys that have the scope {SCOPE!r}")


async def record(database: Database, actor: Actor, events: Sequence[Event]) -> list[Outcome]:
    """Count each event once; returns their outcomes, in order.

    Accepted events are stored with majority when this returns. If it raises, either nothing of the batch is
    stored, or a repeat returns DUPLICATE. Operators record for any user, API keys for their owner. Safe to
    race: of concurrent equal events one is accepted.

    Four round trips, five if a user is not cached. Raises Unauthenticated, Forbidden, BurstExceeded for more
    than a million events of a user's keys a day, and Invalid for more than `MAX_BATCH` events.
    """
    require_recorder(actor)
    if len(events) > MAX_BATCH:
        raise Invalid.field("events", f"{len(events):,} events are too many for one batch: send {MAX_BATCH:,} at most")
    own = None if actor.kind in ("operator", "system") else actor.require_user()
    users = await _users(database, {event.user_id for event in events if event.user_id is not None}, own)
    outcomes: list[Outcome] = [_ACCEPTED] * len(events)
    candidates = _candidates(events, outcomes, users, own, database.clock.now())
    if not candidates:
        return outcomes
    keys = [candidate[0] for candidate in candidates]
    if own is not None:
        _daily.take(own, len(candidates), monotonic())

    async def store(transaction: Database) -> _Decision:
        # Inside the transaction: of two that store the same event one is retried and finds it.
        raw, session = transaction[USAGE_EVENTS].raw, transaction.session
        stored = await raw.find({"_id": {"$in": keys}}, session=session, batch_size=MAX_BATCH + 1).to_list()
        decision = _decide(candidates, {found["_id"]: (found["userId"], found["amount"]) for found in stored}, users)
        if decision.documents:
            await _insert(transaction, decision.documents)
            await transaction[USAGE_BATCHES].insert(_batch(decision, users))
        return decision

    decision = await database.transaction(store)
    if own is not None:
        _daily.put_back(own, len(candidates) - len(decision.documents))
    for index, outcome in decision.outcomes.items():
        outcomes[index] = outcome
    return outcomes


def _candidates(
    events: Sequence[Event],
    outcomes: list[Outcome],
    users: dict[str, ObjectId],
    own: ObjectId | None,
    now: datetime,
) -> list[_Candidate]:
    """The valid events by key; sets the outcomes of the others."""
    earliest, latest = (now - EARLIEST - EPOCH) // _SECOND, (now + LATEST - EPOCH) // _SECOND
    owner = str(own) if own else ""
    hashed = _hashing(own)
    candidates: list[_Candidate] = []
    for index, event in enumerate(events):
        user, amount, source, late = event.user_id or owner, event.amount, event.source, None
        if type(amount) is float and amount.is_integer():
            amount = int(amount)
        if (
            user not in users
            or not 0 < len(event.id) <= MAX_TEXT
            or type(amount) is not int
            or not 0 < amount <= MAX_AMOUNT
            or event.resource != _RESOURCE
            or len(source) > MAX_TEXT
            or event.at.tzinfo is None
        ):
            outcomes[index] = Outcome("INVALID", _problem(event, amount))
            continue
        since = event.at - EPOCH
        second = since.days * 86400 + since.seconds
        if not earliest <= second <= latest:
            late = _outside(second, earliest)
            if not 0 <= second <= _LAST_SECOND:
                outcomes[index] = Outcome("INVALID", late)
                continue
        try:
            key = second.to_bytes(4, "big") + hashed(source, event.id)
        except UnicodeEncodeError:
            outcomes[index] = Outcome(
                "INVALID", "id, source: contain an unpaired surrogate, which is not valid Unicode"
            )
            continue
        candidates.append((key, index, user, amount, second // _HOUR, source, late))
    candidates.sort()  # filling the index in order takes a third less work of the server
    return candidates


def _decide(
    candidates: list[_Candidate], stored: dict[bytes, tuple[ObjectId, int]], users: dict[str, ObjectId]
) -> _Decision:
    """Decide which candidates to store; the first of equals counts. Pure, because a transaction may be
    retried.
    """
    documents: list[dict[str, Any]] = []
    sums: dict[tuple[str, int, str], int] = {}
    outcomes: dict[int, Outcome] = {}
    previous: _Candidate | None = None
    for candidate in candidates:
        key, index, user, amount, hour, source, late = candidate
        if previous is not None and previous[0] == key:
            same = previous[2:4] == (user, amount)
            outcomes[index] = _DUPLICATE if same else _conflict(previous[3])
        elif key in stored:
            same = stored[key] == (users[user], amount)
            outcomes[index] = _DUPLICATE if same else _conflict(stored[key][1])
        elif late is not None:
            outcomes[index] = Outcome("INVALID", late)
        else:
            previous = candidate
            documents.append({"_id": key, "userId": users[user], "amount": amount})
            place = (user, hour, source)
            sums[place] = sums.get(place, 0) + amount
    return _Decision(documents, sums, outcomes)


async def _insert(transaction: Database, documents: list[dict[str, Any]]) -> None:
    """Insert with one raw command: the documents are checked already, and for 20,000 the typed collection or
    the driver's checks take as long as the rest of a batch.
    """
    command = {"insert": USAGE_EVENTS.name, "documents": documents, "ordered": True}
    answer = await transaction.raw.command(command, session=transaction.session)
    if answer["n"] != len(documents):
        raise RuntimeError(f"events were not stored: {answer.get('writeErrors')!r:.500}")


def _batch(decision: _Decision, users: dict[str, ObjectId]) -> UsageBatch:
    places = decision.sums.keys()
    return UsageBatch(
        resource=_RESOURCE,
        users=[users[user] for user, _, _ in places],
        hours=[hour for _, hour, _ in places],
        sources=[source for _, _, source in places],
        amounts=list(decision.sums.values()),
    )


def _hashing(own: ObjectId | None) -> Callable[[str, str], bytes]:
    """8 bytes of BLAKE2b of recorder, source and id. Each API key's owner has a separate space of ids, so
    that none can occupy another's.
    """
    space = b"\0" if own is None else b"\1" + own.binary
    begun = {}

    def hashed(source: str, event_id: str) -> bytes:
        if source not in begun:
            text = source.encode()
            begun[source] = hashlib.blake2b(space + len(text).to_bytes(2, "big") + text, digest_size=8)
        digest = begun[source].copy()
        digest.update(event_id.encode())
        return digest.digest()

    return hashed


_known: "cachebox.TTLCache[tuple[str, str], ObjectId]" = cachebox.TTLCache(100_000, _KNOWN_FOR_S)


async def _users(database: Database, ids: Iterable[str], own: ObjectId | None) -> dict[str, ObjectId]:
    """The users that the ids refer to and the actor may record for. One round trip for those not seen in half
    a minute.
    """
    if own is not None:
        return {str(own): own}
    users: dict[str, ObjectId] = {}
    asked: list[ObjectId] = []
    for text in ids:
        if (database.name, text) in _known:
            users[text] = _known[database.name, text]
        elif _HEX.fullmatch(text):
            asked.append(ObjectId(text))
    if asked:
        for found in await database.users.aggregate(
            [{"$match": {"_id": {"$in": asked}, "deletedAt": None}}, {"$project": {"_id": 1}}]
        ):
            users[str(found["_id"])] = _known[database.name, str(found["_id"])] = found["_id"]
    return users


def _problem(event: Event, amount: object) -> str:
    """Why an event is invalid, most basic problem first."""
    if not 0 < len(event.id) <= MAX_TEXT:
        return f"id: must have 1 to {MAX_TEXT} characters"
    if type(amount) is not int:
        return f"amount: must be a whole number, not {amount!r}"[:MAX_TEXT]
    if not 0 < amount <= MAX_AMOUNT:
        shown = str(amount) if abs(amount) < 10**20 else "that"
        return f"amount: must be between 1 and {MAX_AMOUNT:,}, not {shown}"
    if event.resource in ("projects", "storage"):
        return f"resource: {event.resource} are counted from what exists; only {_RESOURCE} are recorded"
    if event.resource != _RESOURCE:
        return f"resource: must be {_RESOURCE}, not {event.resource[:40]!r}"
    if len(event.source) > MAX_TEXT:
        return f"source: must have {MAX_TEXT} characters at most"
    if event.at.tzinfo is None:
        return "at: must say its offset from UTC, as in 2026-01-31T12:00:00Z"
    if not event.user_id:
        return "userId: is missing"
    return f"userId: there is no user {event.user_id[:40]!r}"


def _outside(second: int, earliest: int) -> str:
    if second < earliest:
        return f"at: is more than {EARLIEST.days} days ago: that month is closed"
    return f"at: is more than {LATEST // timedelta(minutes=1)} minutes in the future: correct the clock"


def _conflict(amount: int) -> Outcome:
    return Outcome(
        "CONFLICT",
        f"id: an event of this source, id and second was recorded before, for another user or amount ({amount}): "
        "give each event an id of its own",
    )
