"""Settlement: recorded events reach ledger and quotas once, whoever settles, and whenever they die."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.metering.conftest import Subscribe
from tests.metering.ledger.test_events import OPERATOR, at, event

from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.database import Database, monitoring
from ximler.database.monitoring import round_trips
from ximler.metering.ledger import changes, recorded, settlement
from ximler.metering.ledger.events import Event, record
from ximler.metering.limits import periods
from ximler.metering.limits.entitlements import open_quota
from ximler.schema.quota import QUOTAS, Quota, quota_id
from ximler.schema.usage_batch import USAGE_BATCHES, USAGE_SETTLEMENTS

_DAY_MS = 86_400_000


async def quota_of(database: Database, person: Actor) -> Quota | None:
    assert person.user_id is not None
    start, _ = periods.around(1, database.clock.now())
    return await database[QUOTAS].find_one({"_id": quota_id(person.user_id, "apiCalls", start)})


async def test_recorded_events_count_against_the_open_quota(database: Database, person: Actor) -> None:
    assert person.user_id is not None
    await open_quota(database, person.user_id, database.clock.now())
    for n in range(3):
        await record(database, OPERATOR, [event(database, person, id=str(n), amount=5)])
    assert await settlement.settle(database) == 3
    quota = await quota_of(database, person)
    assert quota is not None
    assert (quota.ingested, quota.used, quota.opened) == (15, 15, True)
    assert quota.free_at(database.clock.now()) == quota.limit - 15


async def test_a_missing_quota_is_created_and_opened_with_the_recorded_usage(database: Database, person: Actor) -> None:
    assert person.user_id is not None
    await record(database, OPERATOR, [event(database, person, amount=5)])
    await settlement.settle(database)
    made = await quota_of(database, person)
    assert made is not None
    assert (made.ingested, made.opened) == (5, False)
    opened = await open_quota(database, person.user_id, database.clock.now())
    assert (opened.id, opened.ingested, opened.opened) == (made.id, 5, True)


async def test_late_events_count_in_their_own_period(database: Database, person: Actor) -> None:
    assert person.user_id is not None
    now = database.clock.now()
    await open_quota(database, person.user_id, now)
    before = periods.around(1, now)[0] - timedelta(seconds=1)
    earlier = await open_quota(database, person.user_id, before)
    await record(database, OPERATOR, [event(database, person, at=before, amount=9)])
    await record(database, OPERATOR, [event(database, person, id="b", at=before - timedelta(days=40), amount=7)])
    await settlement.settle(database)
    current, found = await quota_of(database, person), await database[QUOTAS].get(earlier.id)
    assert current is not None
    assert (current.ingested, found.ingested) == (0, 9)
    assert sorted(row.amount for row in await database.usage.find({"userId": person.user_id})) == [7, 9]
    assert await database[QUOTAS].count({}) == 2


async def test_an_hour_counts_in_the_period_of_the_subscriptions_anniversary(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    """Also without a stored entitlement."""
    assert person.user_id is not None
    now = database.clock.now()
    await subscribe(person, "pro", start_date=now - timedelta(days=3, hours=1))
    await record(
        database, OPERATOR, [event(database, person, at=now - timedelta(days=2)), event(database, person, id="b")]
    )
    await settlement.settle(database)
    [quota] = await database[QUOTAS].find({"userId": person.user_id})
    day = (now - timedelta(days=3, hours=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert (quota.period_start, quota.ingested) == (day, 2)


async def test_a_row_of_the_ledger_names_the_sources_up_to_a_bound(database: Database, person: Actor) -> None:
    sources = ["https://a.example/$x", "", *(f"source {n}" for n in range(30))]
    sent = [event(database, person, source=source, id="a") for source in sources]
    for part in (sent[:10], sent[10:]):
        await record(database, OPERATOR, part)
        await settlement.settle(database)
    [row] = await database.usage.find({"userId": person.user_id})
    named = row.metadata["recorded"]["sources"]
    assert len(named) == recorded.MAX_SOURCES + 1
    assert sum(named.values()) == row.amount == 32
    assert named[recorded.OTHER] == 16
    assert (named["https://a_example/_x"], named["unnamed"]) == (1, 1)
    assert sum(row.metadata["recorded"]["periods"].values()) == 32


@pytest.mark.slow
async def test_many_users_and_hours_are_settled_with_a_handful_of_commands(database: Database) -> None:
    now = database.clock.now()
    database.clock.offset_ms += (15 - now.day) % 28 * _DAY_MS  # in the first hours of a month, some are of the last
    users = [ObjectId() for _ in range(300)]
    await database.raw["users"].insert_many(
        [{"_id": user, "name": "n", "email": f"{user}@example.com", "password": "-"} for user in users]
    )
    sent = [Event(id=f"{n}", user_id=str(users[n % 300]), at=at(database, hours=n % 7)) for n in range(4000)]
    for part in range(0, 4000, 1000):
        await record(database, OPERATOR, sent[part : part + 1000])
    with round_trips() as trips:
        assert await settlement.settle(database) == 4
    assert len(trips) <= 20, trips
    total = await database.usage.aggregate([{"$group": {"_id": None, "amount": {"$sum": "$amount"}}}])
    assert total[0]["amount"] == 4000
    assert sum(quota.ingested for quota in await database[QUOTAS].find({})) == 4000


async def test_nothing_to_settle_costs_two_round_trips(database: Database) -> None:
    await settlement.settle(database)
    with round_trips() as trips:
        assert await settlement.settle(database) == 0
    assert len(trips) == 2


@pytest.mark.slow
async def test_concurrent_settlements_count_each_batch_once(database: Database, person: Actor, somebody: Actor) -> None:
    for n in range(12):
        sent = [event(database, who, id=f"{n}", source=str(who.user_id)) for who in (person, somebody)]
        await record(database, OPERATOR, sent)
    counts = await asyncio.gather(*(settlement.settle(database) for _ in range(6)))
    await settlement.settle(database)
    assert sum(counts) == 12
    for who in (person, somebody):
        quota = await quota_of(database, who)
        assert quota is not None
        assert quota.ingested == 12
    assert await database[USAGE_BATCHES].count({}) == 0


@pytest.mark.parametrize(
    "before", ["recorded.add", "some rows", "settlement._pay", "some quotas", "alerts.look", "settlement._close"]
)
async def test_a_settlement_of_a_dead_process_is_completed_once(
    before: str, database: Database, person: Actor, somebody: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        pass

    async def die(*args: Any, **kwargs: Any) -> Any:
        raise Died

    sent = [event(database, who, id="a", source=str(who.user_id)) for who in (person, somebody)]
    await record(database, OPERATOR, sent)
    step = {"some rows": "recorded.add", "some quotas": "settlement._pay"}.get(before, before)
    with monkeypatch.context() as patch:
        room = "reports" if step.startswith("alerts") else "ledger"
        patch.setattr(f"ximler.metering.{room}.{step}", die)
        with pytest.raises(Died):
            await settlement.settle(database)
    [due] = await database[USAGE_SETTLEMENTS].find({})
    if before == "some rows":
        sums = settlement._sums(await database[USAGE_BATCHES].find({}))
        periods_of = settlement._periods(due, sums)
        await recorded.add(database, "apiCalls", dict([*sums.items()][:1]), number=due.number, periods=periods_of)
    if before == "some quotas":
        await database[QUOTAS].patch_each([settlement._addition(due.quotas[0], due.amounts[0], due.number)])
    await record(database, OPERATOR, [event(database, person, id="b")])
    await settlement.settle(database)
    await settlement.settle(database)
    for who, amount in ((person, 2), (somebody, 1)):
        quota = await quota_of(database, who)
        assert quota is not None
        assert quota.ingested == amount
    assert sum(row.amount for row in await database.usage.find({})) == 3


async def test_a_slow_process_does_not_repeat_a_completed_settlement(database: Database, person: Actor) -> None:
    """It has read the settlement, is held up, and goes on when the next ones are long done."""
    await record(database, OPERATOR, [event(database, person, id="a")])
    await settlement.settle(database)
    [latest] = await database[USAGE_SETTLEMENTS].find({})
    quota = await quota_of(database, person)
    assert quota is not None
    slow = type(latest)(id="apiCalls", number=latest.number, quotas=[quota.id], users=[quota.user_id], amounts=[1])
    hour = to_ms(database.clock.now()) // 3_600_000
    await record(database, OPERATOR, [event(database, person, id="b")])
    await settlement.settle(database)
    await settlement._carry_out(database, slow, {(quota.user_id, hour): {"": 1}}, (80, 100))
    after = await quota_of(database, person)
    assert after is not None
    assert after.ingested == 2
    assert [row.amount for row in await database.usage.find({})] == [2]
    [latest] = await database[USAGE_SETTLEMENTS].find({})
    assert latest.number == slow.number + 1


@pytest.mark.slow
async def test_the_settler_settles_recorded_events(database: Database, person: Actor) -> None:
    keeping = asyncio.create_task(settlement.Settler(database).run(asyncio.Event()))
    try:
        await asyncio.sleep(0.05)  # it has looked, and found nothing
        await record(database, OPERATOR, [event(database, person, amount=3)])
        for _ in range(200):
            if quota := await quota_of(database, person):
                break
            await asyncio.sleep(0.02)
        assert quota is not None
        assert quota.ingested == 3
    finally:
        while not keeping.done():  # the driver swallows a cancellation now and then
            keeping.cancel()
            await asyncio.wait([keeping], timeout=0.2)


async def test_the_settler_takes_over_a_settlement_after_five_seconds(
    database: Database, person: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*args: Any, **kwargs: Any) -> Any:
        raise ValueError

    await record(database, OPERATOR, [event(database, person)])
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "add", die)
        with pytest.raises(ValueError):  # noqa: PT011 (ours)
            await settlement.settle(database)
    for age_ms, settled in ((0, 0), (4000, 0), (5100, 1)):
        database.clock.offset_ms = age_ms
        await settlement._settle(database, "apiCalls", (80, 100), all_of_it=False)
        assert await database.usage.count({}) == settled


async def test_reads_that_decide_about_a_settlement_have_majority_read_concern(
    database: Database, person: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(database, OPERATOR, [event(database, person)])
    found: dict[str, Any] = {}
    started = monitoring._Commands.started

    def listen(self: Any, sent: Any) -> None:
        if sent.command_name == "find":
            found[sent.command["find"]] = (sent.command.get("readConcern") or {}).get("level")
        started(self, sent)

    monkeypatch.setattr(monitoring._Commands, "started", listen)
    await settlement.settle(database)
    await changes.settle(database)
    decisive = ("usagesettlements", "usagebatches", "entitlements", "gauges")
    assert {name: found[name] for name in decisive} == dict.fromkeys(decisive, "majority")
