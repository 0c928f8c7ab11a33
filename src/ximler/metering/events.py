"""Events of usage, as others tell of them: each is counted once, however often it is sent, and each is answered for.

An event's identity is the second in which it happened and a hash of its source and id. In that order the index of what was
counted grows at its end, which is what keeps it fast with any number of events stored (docs/decisions/0015). So an event
that is sent again must say the same time: when it happened, not when it was sent.

`record` returns when the events are stored with majority, together with their sums; `metering.settlement` brings the sums into
the ledger and the quotas within a second or so, each exactly once.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import cachebox
import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.clock import EPOCH
from ximler.core.errors import Forbidden, Invalid
from ximler.database import Database
from ximler.metering import settlement
from ximler.schema.usage import ResourceType
from ximler.schema.usage_batch import USAGE_BATCHES, UsageBatch
from ximler.schema.usage_event import USAGE_EVENTS

__all__ = ["MAX_BATCH", "SCOPE", "Event", "Outcome", "Status", "record", "require_recorder"]

MAX_BATCH = 20_000  # 3 MB of change log in one transaction; a third of a second
MAX_AMOUNT = 1_000_000_000  # so that no sum of one hour comes near 2^63
MAX_TEXT = 200  # characters of an id, and of a source
EARLIEST = timedelta(days=90)
LATEST = timedelta(minutes=5)
SCOPE = "usage:write"
_RESOURCE: ResourceType = "apiCalls"
_HEX = re.compile(r"[0-9a-f]{24}")
_SECOND = timedelta(seconds=1)
_HOUR = 3600
_LAST_SECOND = 2**32 - 1  # what an ObjectId can say
_KNOWN_FOR_S = 30.0

Status = Literal["ACCEPTED", "DUPLICATE", "CONFLICT", "INVALID"]


class Event(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, gc=False):
    """What a client sends. `id` is unique within `source`; `at` is when it happened; `user_id` may be left out where an API
    key's owner is meant."""

    id: str
    at: datetime
    amount: int = 1
    resource: str = _RESOURCE
    source: str = ""
    user_id: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What became of one event. CONFLICT: another of the same identity was counted, with another user or amount."""

    status: Status
    reason: str | None = None


_ACCEPTED = Outcome("ACCEPTED")
_DUPLICATE = Outcome("DUPLICATE")


class _Candidate(msgspec.Struct, gc=False):
    """An event that may be counted. `late` says why not, should it not have been counted before."""

    index: int
    key: ObjectId
    user: ObjectId
    amount: int
    hour: int  # since 1970
    source: str
    late: str | None


class _Decision(msgspec.Struct):
    documents: list[dict[str, Any]]
    sums: dict[tuple[ObjectId, int, str], int]
    outcomes: dict[int, Outcome]


def require_recorder(actor: Actor) -> None:
    """Usage is told by whoever runs Ximler, or by a program that was given a key for it; nobody invents it by hand.

    Raises Unauthenticated, Forbidden.
    """
    if actor.kind in ("operator", "system") and (actor.via != "api_key" or SCOPE in actor.scopes):
        return
    actor.require_user()
    if actor.via != "api_key" or SCOPE not in actor.scopes:
        raise Forbidden(f"Usage is recorded by operators, and with API keys that have the scope {SCOPE!r}")


async def record(database: Database, actor: Actor, events: Sequence[Event]) -> list[Outcome]:
    """Count each event once; returns what became of each, in their order.

    Everything that is accepted is stored, with majority, when this returns; whatever is raised, nothing of the batch is, or
    sending it again answers DUPLICATE. Operators record for anybody; an API key for its owner. Safe to race: of two that send
    the same event one is told DUPLICATE.

    Four round trips, five where a user has not been seen lately. Raises Unauthenticated, Forbidden, and Invalid for more than
    `MAX_BATCH` events.
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
    keys = [candidate.key for candidate in candidates]

    async def store(transaction: Database) -> _Decision:
        # Inside: of two transactions that store the same event one is repeated, and finds it the next time.
        raw, session = transaction[USAGE_EVENTS].raw, transaction.session
        stored = await raw.find({"_id": {"$in": keys}}, session=session, batch_size=MAX_BATCH + 1).to_list()
        decision = _decide(candidates, {found["_id"]: (found["userId"], found["amount"]) for found in stored})
        if decision.documents:
            # Not through the typed collection: nothing is left to check, and 20,000 are a third of the time.
            await raw.insert_many(decision.documents, ordered=True, session=session)
            await transaction[USAGE_BATCHES].insert(_batch(decision))
        return decision

    decision = await database.transaction(store)
    if decision.documents:
        settlement.expect(database)
    for index, outcome in decision.outcomes.items():
        outcomes[index] = outcome
    return outcomes


def _candidates(
    events: Sequence[Event],
    outcomes: list[Outcome],
    users: dict[str | None, ObjectId],
    own: ObjectId | None,
    now: datetime,
) -> list[_Candidate]:
    """Those that say something that can be counted; the others' outcomes are set."""
    earliest, latest = (now - EARLIEST - EPOCH) // _SECOND, (now + LATEST - EPOCH) // _SECOND
    hashes = _Hashes(own)
    candidates = []
    for index, event in enumerate(events):
        user = users.get(event.user_id)
        amount = event.amount
        if user is None or not 0 < len(event.id) <= MAX_TEXT or type(amount) is not int or not 0 < amount <= MAX_AMOUNT:
            outcomes[index] = Outcome("INVALID", _problem(event))
            continue
        if event.resource != _RESOURCE or len(event.source) > MAX_TEXT or event.at.tzinfo is None:
            outcomes[index] = Outcome("INVALID", _problem(event))
            continue
        since = event.at - EPOCH
        second = since.days * 86400 + since.seconds
        late = None
        if not earliest <= second <= latest:
            late = _outside(second, earliest)
            if not 0 <= second <= _LAST_SECOND:
                outcomes[index] = Outcome("INVALID", late)
                continue
        try:
            key = ObjectId(second.to_bytes(4, "big") + hashes.of(event.source, event.id))
        except UnicodeEncodeError:
            outcomes[index] = Outcome(
                "INVALID", "id, source: contain an unpaired surrogate, which is not valid Unicode"
            )
            continue
        candidates.append(_Candidate(index, key, user, amount, second // _HOUR, event.source, late))
    candidates.sort(key=_key)  # the index is filled from left to right: a third less work for the server
    return candidates


def _key(candidate: _Candidate) -> tuple[bytes, int]:
    return candidate.key.binary, candidate.index


def _decide(candidates: list[_Candidate], stored: dict[ObjectId, tuple[ObjectId, int]]) -> _Decision:
    """What to store, given what is; the first of equals counts. Changes nothing: a transaction may be repeated."""
    stored = dict(stored)
    decision = _Decision([], {}, {})
    sums = decision.sums
    for candidate in candidates:
        known = stored.get(candidate.key)
        if known is not None:
            same = known == (candidate.user, candidate.amount)
            decision.outcomes[candidate.index] = _DUPLICATE if same else _conflict(known[1])
        elif candidate.late is not None:
            decision.outcomes[candidate.index] = Outcome("INVALID", candidate.late)
        else:
            user, amount = stored[candidate.key] = (candidate.user, candidate.amount)
            decision.documents.append({"_id": candidate.key, "userId": user, "amount": amount})
            place = (user, candidate.hour, candidate.source)
            sums[place] = sums.get(place, 0) + amount
    return decision


def _batch(decision: _Decision) -> UsageBatch:
    places = decision.sums.keys()
    return UsageBatch(
        resource=_RESOURCE,
        users=[user for user, _, _ in places],
        hours=[hour for _, hour, _ in places],
        sources=[source for _, _, source in places],
        amounts=list(decision.sums.values()),
    )


class _Hashes:
    """8 bytes of BLAKE2b of who records, source and id. Events of an API key have a space of their own: nobody can take the
    ids of another's."""

    def __init__(self, own: ObjectId | None) -> None:
        self._space = b"\0" if own is None else b"\1" + own.binary
        self._by_source: dict[str, hashlib.blake2b] = {}

    def of(self, source: str, event_id: str) -> bytes:
        begun = self._by_source.get(source)
        if begun is None:
            text = source.encode()
            begun = hashlib.blake2b(self._space + len(text).to_bytes(2, "big") + text, digest_size=8)
            self._by_source[source] = begun
        digest = begun.copy()
        digest.update(event_id.encode())
        return digest.digest()


_known: "cachebox.TTLCache[tuple[str, str], ObjectId]" = cachebox.TTLCache(100_000, _KNOWN_FOR_S)


async def _users(database: Database, ids: Iterable[str], own: ObjectId | None) -> dict[str | None, ObjectId]:
    """The users whom the ids mean and the actor may record for. One round trip for those not seen in half a minute."""
    if own is not None:
        return {None: own, str(own): own}
    users: dict[str | None, ObjectId] = {}
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


def _problem(event: Event) -> str:
    """Why an event cannot be counted, in the order in which a person would mend it."""
    amount: object = event.amount
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
    if event.user_id is None:
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
