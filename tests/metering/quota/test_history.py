"""Any history: two processes, operators, plans, months, lost answers and crashes,
in whatever order hypothesis thinks of."""

import asyncio
import contextlib
import secrets
from collections import Counter
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ximler import setup
from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, Unavailable
from ximler.database import Database, connect
from ximler.metering import corrections
from ximler.metering.limits import entitlements
from ximler.metering.quota import leases
from ximler.metering.quota.meter import Meter
from ximler.metering.quota.reaping import Reaper
from ximler.schema.quota import QUOTAS, Quota
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")
LIMITS = st.sampled_from([-1, 0, 1, 7, 40, 300, 1000])
WHO = st.integers(0, 1)


class History(RuleBasedStateMachine):
    """Several commands a step, so each runs on a loop and a connection of its own machine."""

    uri = ""
    loop: asyncio.AbstractEventLoop
    database: Database

    @initialize()
    def begin(self) -> None:
        self.served: Counter[str] = Counter()  # by quota
        self.before: dict[str, Quota] = {}
        self.run(self._begin())

    async def _begin(self) -> None:
        self.database.clock.offset_ms = 0
        user = await self.database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
        self.user_id = user.id
        self.actor = Actor(kind="user", via="session", user_id=user.id)
        self.meters = [self._meter(), self._meter()]

    def _meter(self) -> Meter:
        return Meter(self.database, valid_for=timedelta(0))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(who=WHO, units=st.sampled_from([1, 1, 1, 2, 5, 30, 200]), times=st.integers(1, 20))
    def consume(self, who: int, units: int, times: int) -> None:
        async def work() -> None:
            for _ in range(times):
                try:
                    await self.meters[who].consume(self.actor, units=units)
                except LimitExceeded:
                    return
                self.served[self.meters[who]._tallies[self.user_id].quota_id] += units

        self.run(work())

    @rule(who=WHO)
    def sweep(self, who: int) -> None:
        self.run(self.meters[who].sweep())

    @rule(who=WHO, arrives=st.booleans())
    def lose_a_report(self, who: int, arrives: bool) -> None:
        settle = leases.settle

        async def broken(*args: Any) -> None:
            if arrives:
                await settle(*args)
            raise Unavailable("the connection broke")

        async def work() -> None:
            with mock.patch.object(leases, "settle", broken), contextlib.suppress(Unavailable):
                await self.meters[who].sweep()

        self.run(work())

    @rule(who=WHO, arrives=st.booleans())
    def lose_a_grant(self, who: int, arrives: bool) -> None:
        grant = leases.grant

        async def broken(*args: Any, **more: Any) -> None:
            if arrives:
                await grant(*args, **more)
            raise Unavailable("the connection broke")

        async def work() -> None:
            tally = self.meters[who]._tallies.get(self.user_id)
            try:
                with mock.patch.object(leases, "grant", broken):
                    await self.meters[who].consume(self.actor, units=(tally.left if tally else 0) + 1)
            except (Unavailable, LimitExceeded):
                pass
            else:
                raise AssertionError("served without a grant")

        self.run(work())

    @rule(who=WHO)
    def stay_idle(self, who: int) -> None:
        for tally in self.meters[who]._all():
            tally.last_use -= 60
            tally.seen_at -= 60
        self.run(self.meters[who].sweep())

    @rule(who=WHO)
    def crash(self, who: int) -> None:
        self.meters[who] = self._meter()

    @rule(who=WHO)
    def end(self, who: int) -> None:
        self.run(self.meters[who].close())
        self.meters[who] = self._meter()

    @rule()
    def take_everybody_for_dead(self) -> None:
        self.run(Reaper(self.database, valid_for=timedelta(0)).reap())

    @rule(limit=LIMITS, hours=st.sampled_from([None, 1, 100]))
    def override(self, limit: int, hours: int | None) -> None:
        until = self.database.clock.now() + timedelta(hours=hours) if hours else None
        self.run(
            entitlements.override(self.database, OPERATOR, self.user_id, reason="x", api_calls=limit, expires_at=until)
        )

    @rule()
    def end_override(self) -> None:
        self.run(entitlements.end_override(self.database, OPERATOR, self.user_id, reason="x"))

    @rule(plan=st.sampled_from(["free", "pro", None]), days=st.integers(0, 60))
    def subscribe(self, plan: str | None, days: int) -> None:
        async def change(transaction: Database) -> None:
            await transaction.subscriptions.patch_many({"userId": self.user_id}, {"$set": {"status": "EXPIRED"}})
            if plan is not None:
                start = self.database.clock.now() - timedelta(days=days)
                await transaction.subscriptions.insert(
                    Subscription(user_id=self.user_id, plan_id=plan, status="ACTIVE", start_date=start, price=0)
                )
            await entitlements.entitle(transaction, self.user_id)

        self.run(self.database.transaction(change))

    @rule(hours=st.sampled_from([1, 30, 31 * 24]))
    def wait(self, hours: int) -> None:
        self.database.clock.offset_ms += hours * 3_600_000

    @rule()
    def forgive(self) -> None:
        async def work() -> None:
            if current := await leases.current(self.database, self.user_id):
                back = await corrections.forgive(self.database, OPERATOR, self.user_id, reason="x")
                self.forgiven[current[0].id] += back

        self.run(work())

    @initialize()
    def forgive_nothing(self) -> None:
        self.forgiven: Counter[str] = Counter()

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "meters"):
            self.run(self._check())

    async def _check(self) -> None:
        now = self.database.clock.now()
        for quota in await self.database[QUOTAS].find({"userId": self.user_id}):
            assert quota.granted == quota.settled + quota.forfeited + quota.open, quota
            assert sum(quota.hours.values()) == quota.settled
            was = self.before.get(quota.id)
            limit = quota.limit_at(now)
            assert limit < 0 or quota.granted <= max(limit, was.granted if was else 0), (was, quota)
            # Never a unit that was not granted.
            assert self.served[quota.id] <= quota.granted + self.forgiven[quota.id]
            self.before[quota.id] = quota

    def teardown(self) -> None:
        if hasattr(self, "meters"):
            self.run(self._end())

    async def _end(self) -> None:
        await asyncio.gather(*(meter.close() for meter in self.meters))
        self.database.clock.offset_ms += 1
        await Reaper(self.database, valid_for=timedelta(0)).reap()
        for quota in await self.database[QUOTAS].find({"userId": self.user_id}):
            assert quota.leases == {}
            assert quota.settled <= self.served[quota.id] <= quota.settled + quota.forfeited + self.forgiven[quota.id]
            day = f"{quota.period_start:%Y-%m-%d}"
            rows = await self.database.raw["usage"].find({"userId": self.user_id}).to_list()
            assert sum(row["metadata"]["leased"].get(day, {}).get("units", 0) for row in rows) == quota.settled
        rows = await self.database.raw["usage"].find({"userId": self.user_id}).to_list()
        for row in rows:
            assert row["amount"] == sum(part["units"] for part in row["metadata"]["leased"].values())
        assert len({row["periodStart"] for row in rows}) == len(rows)
        assert await corrections.rebuild(self.database, OPERATOR, self.user_id) == []


@pytest.mark.slow
def test_any_history_adds_up(mongodb_uri: str) -> None:
    _run(mongodb_uri, examples=8, steps=25)


@pytest.mark.soak
def test_a_thousand_histories_add_up(mongodb_uri: str) -> None:
    _run(mongodb_uri, examples=1000, steps=60)


def _run(uri: str, *, examples: int, steps: int) -> None:
    loop = asyncio.new_event_loop()
    database = loop.run_until_complete(connect(uri, name=f"ximler_test_{secrets.token_hex(4)}"))
    try:
        loop.run_until_complete(setup.initialise(database))
        History.loop, History.database = loop, database
        case = History.TestCase
        case.settings = settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        )
        case().runTest()
    finally:
        loop.run_until_complete(database.client.drop_database(database.name))
        loop.run_until_complete(database.close())
        loop.close()
