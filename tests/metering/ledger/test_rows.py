"""The ledger: one row a user and hour, in which nothing is lost or counted twice,
whoever counts at the same time."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Int64, ObjectId
from tests.metering.test_corrections import OPERATOR, shown, used

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering import corrections
from ximler.metering.ledger import recorded, rows
from ximler.metering.reports.series import series
from ximler.schema.quota import Quota, quota_id

MONTH = datetime(2026, 3, 1, tzinfo=UTC)
FIRST = int(MONTH.timestamp()) // 3600  # its first hour


def quota(user_id: ObjectId, hours: dict[int, int], *, start: datetime = MONTH, **detail: Any) -> Quota:
    """With so many units of each hour."""
    return Quota(
        id=quota_id(user_id, "apiCalls", start),
        user_id=user_id,
        resource="apiCalls",
        period_start=start,
        period_end=start + timedelta(days=31),
        limit=1000,
        hours={f"h{hour}": units for hour, units in hours.items()},
        detail=detail,
    )


async def record(database: Database, user_id: ObjectId, hours: dict[int, int], *, number: int) -> None:
    sums = {(user_id, hour): {"a": units} for hour, units in hours.items()}
    await recorded.add(database, "apiCalls", sums, number=number, periods=dict.fromkeys(sums, MONTH))


async def stored(database: Database, user_id: ObjectId) -> list[dict[str, Any]]:
    return await database.raw["usage"].find({"userId": user_id}).sort("periodStart", 1).to_list()


async def test_leased_and_recorded_usage_of_an_hour_share_a_row(database: Database) -> None:
    user = ObjectId()
    await rows.write(database, [quota(user, {FIRST: 5}, **{f"h{FIRST}": {"routes": {"GET /": 4}}})])
    await record(database, user, {FIRST: 30}, number=1)
    await rows.write(database, [quota(user, {FIRST: 7}, **{f"h{FIRST}": {"routes": {"GET /": 6}}})])
    [row] = await stored(database, user)
    assert row["amount"] == 37
    assert row["metadata"] == {
        "leased": {"2026-03-01": {"units": 7, "routes": {"GET /": 6}}},
        "recorded": {"through": 1, "periods": {"2026-03-01": 30}, "sources": {"a": 30}},
    }
    assert row["periodEnd"] - row["periodStart"] == timedelta(hours=1)
    assert row["createdAt"]


async def test_repeated_and_reordered_changes_count_once(database: Database) -> None:
    user = ObjectId()
    for units in (7, 5, 7):
        await rows.write(database, [quota(user, {FIRST: units})])
    for number in (2, 1, 2):
        await record(database, user, {FIRST: 30}, number=number)
    [row] = await stored(database, user)
    assert row["amount"] == 37


@pytest.mark.slow
async def test_concurrent_inserts_of_a_row_lose_nothing(database: Database) -> None:
    hours = dict.fromkeys(range(FIRST, FIRST + 100), 3)
    for _ in range(10):
        user = ObjectId()
        await asyncio.gather(
            record(database, user, hours, number=1),
            rows.write(database, [quota(user, hours)]),
            record(database, user, hours, number=1),
            rows.write(database, [quota(user, hours)]),
        )
        found = await stored(database, user)
        assert [row["amount"] for row in found] == [6] * 100


async def test_an_hour_in_which_the_anchor_moved_has_the_usage_of_both_quotas(database: Database) -> None:
    user, hour = ObjectId(), FIRST + 24 * 20
    name = f"h{hour}"
    both = [
        quota(user, {hour: 5}, **{name: {"keys": {"k": 5}}}),
        quota(user, {hour: 3}, start=MONTH + timedelta(days=20), **{name: {"keys": {"k": 3}}}),
    ]
    await rows.write(database, both)
    await rows.write(database, both)
    [row] = await stored(database, user)
    assert row["amount"] == 8
    assert {day: part["keys"] for day, part in row["metadata"]["leased"].items()} == {
        "2026-03-01": {"k": 5},
        "2026-03-21": {"k": 3},
    }


async def test_amounts_added_by_another_application_are_kept_and_count(database: Database, person: Actor) -> None:
    assert person.user_id is not None
    before = await used(database, person, 7)
    [row] = await stored(database, person.user_id)
    await database.raw["usage"].update_one(
        {"_id": row["_id"]}, {"$inc": {"amount": 20}, "$set": {"metadata.by": "them"}}
    )
    assert shown(await corrections.rebuild(database, OPERATOR, person.user_id)) == {("foreign", 0, 20)}
    await rows.write(database, [Quota(**before_as(before, 9))])
    [row] = await stored(database, person.user_id)
    assert (row["amount"], row["metadata"]["by"]) == (29, "them")


def before_as(raw: dict[str, Any], units: int) -> dict[str, Any]:
    """The fields of a quota as it would be with so many units in its only hour."""
    [hour] = raw["hours"]
    return {
        "id": raw["_id"],
        "user_id": raw["userId"],
        "resource": "apiCalls",
        "period_start": raw["periodStart"].replace(tzinfo=UTC),
        "period_end": raw["periodEnd"].replace(tzinfo=UTC),
        "limit": 1000,
        "hours": {hour: units},
    }


@pytest.mark.parametrize("amount", [3, 0, Int64(-4), float("nan")])
async def test_a_row_with_an_amount_below_its_parts_is_repaired(database: Database, person: Actor, amount: Any) -> None:
    assert person.user_id is not None
    await used(database, person, 7)
    await database.raw["usage"].update_one({}, {"$set": {"amount": amount}})
    found = await corrections.rebuild(database, OPERATOR, person.user_id)
    assert {(what, now) for what, _, now in shown(found)} == {("ledger", 7)}
    [row] = await stored(database, person.user_id)
    assert row["amount"] == 7
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []


async def test_rows_as_they_were_before_one_hour_had_one_row_are_read_as_they_are(
    database: Database, person: Actor
) -> None:
    assert person.user_id is not None
    quota = await used(database, person, 7)
    [row] = await stored(database, person.user_id)
    old = {name: row[name] for name in ("userId", "resourceType", "amount", "periodStart", "periodEnd", "createdAt")}
    await database.raw["usage"].delete_many({})
    await database.raw["usage"].insert_one({**old, "metadata": {"source": "leases", "quota": quota["_id"]}})
    await database.raw["usage"].insert_one({**old, "amount": 30, "metadata": {"source": "events", "through": 1}})
    await database.raw["quotas"].update_one({}, {"$set": {"ingested": 30}})
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    start = row["periodStart"].replace(tzinfo=UTC)
    [point] = await series(database, person, "apiCalls", since=start, until=start + timedelta(hours=1), by="HOUR")
    assert point.amount == 37


WRONG = [
    {"amount": "many"},
    {"amount": None, "metadata": "text"},
    {"metadata": [1]},
    {"metadata": {"leased": [], "recorded": 5}},
    {
        "metadata": {
            "leased": {"2026-03-01": {"units": "x"}},
            "recorded": {"periods": {"2026-03-01": "x"}, "sources": 1},
        }
    },
]


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_row_with_a_value_of_a_wrong_type_is_repaired_and_does_not_block_others(
    database: Database, wrong: dict[str, Any]
) -> None:
    users = [ObjectId() for _ in range(20)]
    await database.raw["usage"].insert_one(
        {"_id": rows.row_id(users[7], "apiCalls", FIRST), "userId": users[7], "resourceType": "apiCalls"}
        | {"amount": 0, "periodStart": MONTH, "periodEnd": MONTH + timedelta(hours=1)}
        | wrong,
        bypass_document_validation=True,
    )
    for _ in range(2):
        await rows.write(database, [quota(user, {FIRST: 5}) for user in users])
        sums = {(user, FIRST): {"a": 30} for user in users}
        await recorded.add(database, "apiCalls", sums, number=1, periods=dict.fromkeys(sums, MONTH))
    for user in users:
        [row] = await stored(database, user)
        assert row["amount"] == 35
        assert row["metadata"]["leased"]["2026-03-01"]["units"] == 5
        assert row["metadata"]["recorded"]["periods"] == {"2026-03-01": 30}
