"""Events of usage: counted once, and each answered for."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests.deleting import soft_delete

from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden, Invalid, Unauthenticated
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.metering.ledger import events, settlement
from ximler.metering.ledger.events import Event, record

OPERATOR = Actor(kind="operator", via="cli")


def at(database: Database, **ago: float) -> datetime:
    return database.clock.now() - timedelta(**ago)


def statuses(outcomes: list[events.Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


async def counted(database: Database) -> int:
    """The ledger's usage of all users."""
    await settlement.settle(database)
    rows = await database.raw["usage"].find({}).to_list()
    return sum(row["amount"] for row in rows)


async def test_an_event_that_is_sent_again_counts_once(database: Database, person: Actor) -> None:
    sent = [Event(id=str(n), user_id=str(person.user_id), at=at(database, minutes=n), amount=2) for n in range(10)]
    assert statuses(await record(database, OPERATOR, sent)) == ["ACCEPTED"] * 10
    assert statuses(await record(database, OPERATOR, sent)) == ["DUPLICATE"] * 10
    more = [*sent[:3], *(Event(id=f"new {n}", user_id=str(person.user_id), at=at(database)) for n in range(2))]
    assert statuses(await record(database, OPERATOR, more)) == ["DUPLICATE"] * 3 + ["ACCEPTED"] * 2
    assert await counted(database) == 22


async def test_an_event_that_is_in_one_batch_twice_counts_once(database: Database, person: Actor) -> None:
    event = Event(id="a", user_id=str(person.user_id), at=at(database))
    assert statuses(await record(database, OPERATOR, [event, event])) == ["ACCEPTED", "DUPLICATE"]
    assert await counted(database) == 1


async def test_the_same_id_of_another_source_is_another_event(database: Database, person: Actor) -> None:
    now = at(database)
    sent = [Event(id="b", source=s, user_id=str(person.user_id), at=now) for s in ("", "a", "aa")]
    sent += [Event(id="ab", source=s, user_id=str(person.user_id), at=now) for s in ("", "a")]
    assert statuses(await record(database, OPERATOR, sent)) == ["ACCEPTED"] * 5


async def test_the_same_id_with_another_payload_is_a_conflict(
    database: Database, person: Actor, somebody: Actor
) -> None:
    event = Event(id="a", user_id=str(person.user_id), at=at(database), amount=2)
    await record(database, OPERATOR, [event])
    others = [
        Event(id="a", user_id=str(person.user_id), at=event.at, amount=3),
        Event(id="a", user_id=str(somebody.user_id), at=event.at, amount=2),
        Event(id="z", user_id=str(person.user_id), at=event.at),
    ]
    outcomes = await record(database, OPERATOR, others)
    assert statuses(outcomes) == ["CONFLICT", "CONFLICT", "ACCEPTED"]
    assert outcomes[0].reason is not None
    assert "an id of its own" in outcomes[0].reason
    assert await counted(database) == 3


async def test_an_amount_of_a_whole_number_may_have_a_decimal_point(database: Database, person: Actor) -> None:
    sent = event(database, person, amount=2.0)
    again = msgspec.structs.replace(sent, amount=2)
    assert statuses(await record(database, OPERATOR, [sent, again])) == ["ACCEPTED", "DUPLICATE"]
    assert await counted(database) == 2


async def test_a_late_event_lands_in_the_hour_in_which_it_happened(database: Database, person: Actor) -> None:
    now = database.clock.now()
    ago = now - timedelta(days=45)
    await record(database, OPERATOR, [Event(id="a", user_id=str(person.user_id), at=ago, amount=7)])
    await settlement.settle(database)
    [row] = await database.usage.find({"userId": person.user_id})
    hour = ago.replace(minute=0, second=0, microsecond=0)
    assert (row.amount, row.period_start, row.period_end) == (7, hour, hour + timedelta(hours=1))
    assert row.resource_type == "apiCalls"


async def test_an_event_at_midnight_and_one_before_it_are_of_different_hours(database: Database, person: Actor) -> None:
    midnight = database.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    times = (midnight, midnight - timedelta(milliseconds=1))
    await record(database, OPERATOR, [Event(id=str(n), user_id=str(person.user_id), at=t) for n, t in enumerate(times)])
    await settlement.settle(database)
    rows = await database.usage.find({"userId": person.user_id}, sort=[("periodStart", 1)])
    assert [row.period_start for row in rows] == [midnight - timedelta(hours=1), midnight]


def event(database: Database, person: Actor, **changes: Any) -> Event:
    given: dict[str, Any] = {"id": "a", "user_id": str(person.user_id), "at": database.clock.now()}
    return Event(**given | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount": 0}, "amount: must be between 1 and 1,000,000,000, not 0"),
        ({"amount": -5}, "amount: must be between 1 and 1,000,000,000, not -5"),
        ({"amount": 2**53 + 1}, "amount: must be between 1 and 1,000,000,000, not 9007199254740993"),
        ({"amount": 10**400}, "amount: must be between 1 and 1,000,000,000, not that"),
        ({"amount": 1.5}, "amount: must be a whole number, not 1.5"),
        ({"amount": 0.0}, "amount: must be between 1 and 1,000,000,000, not 0"),
        ({"amount": 1e300}, "amount: must be between 1 and 1,000,000,000, not that"),
        ({"amount": True}, "amount: must be a whole number, not True"),
        ({"resource": "seats"}, "resource: must be apiCalls, not 'seats'"),
        ({"resource": "storage"}, "resource: storage are counted from what exists; only apiCalls are recorded"),
        ({"user_id": "f" * 24}, f"userId: there is no user '{'f' * 24}'"),
        ({"user_id": "nobody"}, "userId: there is no user 'nobody'"),
        ({"user_id": None}, "userId: is missing"),
        ({"id": ""}, "id: must have 1 to 200 characters"),
        ({"id": "x" * 201}, "id: must have 1 to 200 characters"),
        ({"id": "\ud800"}, "id, source: contain an unpaired surrogate, which is not valid Unicode"),
        ({"source": "x" * 201}, "source: must have 200 characters at most"),
        ({"at": datetime(2026, 1, 31)}, "at: must say its offset from UTC, as in 2026-01-31T12:00:00Z"),  # noqa: DTZ001
        ({"at": datetime(1, 1, 1, tzinfo=UTC)}, "at: is more than 90 days ago: that month is closed"),
        ({"at": datetime(9999, 1, 1, tzinfo=UTC)}, "at: is more than 5 minutes in the future: correct the clock"),
    ],
)
async def test_invalid_events_are_named_and_the_others_counted(
    changes: dict[str, Any], reason: str, database: Database, person: Actor
) -> None:
    sent = [event(database, person, id="good"), event(database, person, **changes), event(database, person, id="too")]
    outcomes = await record(database, OPERATOR, sent)
    assert statuses(outcomes) == ["ACCEPTED", "INVALID", "ACCEPTED"]
    assert outcomes[1].reason == reason
    assert await counted(database) == 2


async def test_the_window_is_90_days_back_and_5_minutes_ahead(database: Database, person: Actor) -> None:
    ages = {"old": 90 * 86400 - 60, "too old": 90 * 86400 + 60, "ahead": -290, "too far ahead": -310}
    sent = [event(database, person, id=name, at=at(database, seconds=age)) for name, age in ages.items()]
    assert statuses(await record(database, OPERATOR, sent)) == ["ACCEPTED", "INVALID", "ACCEPTED", "INVALID"]


async def test_a_duplicate_is_recognised_although_it_is_too_old_to_count(database: Database, person: Actor) -> None:
    sent = [event(database, person)]
    await record(database, OPERATOR, sent)
    database.clock.offset_ms = 400 * 86_400_000
    assert statuses(await record(database, OPERATOR, sent)) == ["DUPLICATE"]


async def test_a_closed_account_has_no_usage(database: Database, somebody: Actor) -> None:
    await soft_delete(database.users, {"_id": somebody.user_id})
    assert statuses(await record(database, OPERATOR, [event(database, somebody)])) == ["INVALID"]


async def test_only_operators_and_keys_with_the_scope_record(database: Database, person: Actor) -> None:
    sent = [event(database, person)]
    key = Actor(kind="user", via="api_key", user_id=person.user_id, scopes=frozenset({"projects:read"}))
    for actor in (person, key, Actor(kind="operator", via="api_key", user_id=person.user_id)):
        with pytest.raises(Forbidden, match="usage:write"):
            await record(database, actor, sent)
    with pytest.raises(Unauthenticated):
        await record(database, Actor(), sent)
    assert statuses(await record(database, SYSTEM, sent)) == ["ACCEPTED"]


async def test_a_key_records_for_its_owner_alone_and_cannot_take_anothers_ids(
    database: Database, person: Actor, somebody: Actor
) -> None:
    key = Actor(kind="user", via="api_key", user_id=somebody.user_id, scopes=frozenset({"usage:write"}))
    for_another = event(database, person)
    outcomes = await record(
        database, key, [for_another, event(database, somebody), event(database, person, user_id=None)]
    )
    assert statuses(outcomes) == ["INVALID", "ACCEPTED", "DUPLICATE"]
    assert statuses(await record(database, OPERATOR, [for_another])) == ["ACCEPTED"]
    await settlement.settle(database)
    assert [row.amount for row in await database.usage.find({"userId": somebody.user_id})] == [1]


async def test_a_batch_has_20_000_events_at_most(database: Database, person: Actor) -> None:
    with pytest.raises(Invalid, match="20,001 events are too many"):
        await record(database, OPERATOR, [event(database, person)] * 20_001)
    assert await record(database, OPERATOR, []) == []


async def test_a_batch_costs_five_round_trips_and_four_with_cached_users(database: Database, person: Actor) -> None:
    for expected in (5, 4):
        sent = [event(database, person, id=f"{expected} {n}") for n in range(1000)]
        with round_trips() as trips:
            await record(database, OPERATOR, sent)
        assert len(trips) == expected, trips


async def test_of_concurrent_equal_events_one_is_accepted(database: Database, person: Actor) -> None:
    sent = [event(database, person, id=str(n)) for n in range(300)]
    answers = await asyncio.gather(*(record(database, OPERATOR, sent[n * 20 : n * 20 + 150]) for n in range(8)))
    accepted = [outcome.status for answer in answers for outcome in answer].count("ACCEPTED")
    assert accepted == 20 * 7 + 150
    assert await counted(database) == accepted
