"""Topic `coupons`: 64 buyers at a time who want the same coupon,
which has fewer uses than there are buyers."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from statistics import median

from bson import ObjectId

from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.billing import redemptions
from ximler.core.actor import Actor
from ximler.core.errors import XimlerError
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.coupon import Coupon
from ximler.schema.plan import Plan
from ximler.schema.redemption import REDEMPTIONS

__all__ = ["run"]

BUYERS, USES, AT_ONCE = 1_200, 1_000, 64


async def run(setup: Setup) -> list[Table]:
    rates: list[float] = []
    said: Counter[str] = Counter()
    right = 0
    async with setup.database(initialised=True) as database:
        plan = await database.plans.get({"id": "pro"})
        await _rush(database, plan, "WARM")
        rounds = setup.rounds(8)
        for number in range(rounds):
            code = f"ROUND-{number}"
            seconds, answers = await _rush(database, plan, code)
            rates.append(USES / seconds)
            said += answers
            coupon = await database.coupons.get({"code": code})
            kept = await database[REDEMPTIONS].count({"code": code, "counted": True})
            right += coupon.used_count == kept == answers["reserved"] == USES
        alone, trips = await _alone(database, plan)
    return [
        Table(
            title=f"coupons: {BUYERS:,} buyers, {AT_ONCE} at a time, for {USES:,} uses of one code",
            figures=[
                Figure(what="rounds with exactly maxUses reserved", value=right, unit="", exactly=rounds),
                Figure(what="reservations", value=median(rates), unit="a second", least=500),
                Figure(what="round trips, one buyer", value=trips, unit="", most=4),
            ],
            columns=("", "p50", "answers, all rounds"),
            rows=[
                (
                    f"{AT_ONCE} at a time",
                    ms(median(1 / rate for rate in rates)),
                    ", ".join(f"{n} {a}" for a, n in said.items()),
                ),
                ("one buyer", ms(alone), ""),
            ],
            notes=["The seconds contain the buyers who are refused. p50 of the first row is time over reservations."],
            samples={"reservations a second": rates},
        )
    ]


async def _rush(database: Database, plan: Plan, code: str) -> tuple[float, Counter[str]]:
    await _coupon(database, code, USES)
    waiting = iter([Actor(kind="user", via="session", user_id=ObjectId()) for _ in range(BUYERS)])
    answers: Counter[str] = Counter()

    async def buyer() -> None:
        for actor in waiting:
            try:
                await redemptions.reserve(database, actor, code, plan=plan)
                answers["reserved"] += 1
            except XimlerError as error:
                answers[error.code] += 1

    began = time.perf_counter()
    await asyncio.gather(*(buyer() for _ in range(AT_ONCE)))
    return time.perf_counter() - began, answers


async def _alone(database: Database, plan: Plan) -> tuple[float, int]:
    await _coupon(database, "ALONE", 1_000)
    seconds, trips = [], 0
    for _ in range(20):
        actor = Actor(kind="user", via="session", user_id=ObjectId())
        began = time.perf_counter()
        with round_trips() as sent:
            await redemptions.reserve(database, actor, "ALONE", plan=plan)
        seconds.append(time.perf_counter() - began)
        trips = max(trips, len(sent))
    return median(seconds), trips


async def _coupon(database: Database, code: str, uses: int) -> None:
    now = database.clock.now()
    await database.coupons.insert(
        Coupon(
            code=code,
            name=code,
            type="PERCENTAGE",
            value=20,
            max_uses=uses,
            valid_from=now,
            valid_until=now + timedelta(days=1),
        )
    )
