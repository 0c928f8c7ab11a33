"""Uses of coupons: exactly as many as there are, under races, crashes and second thoughts."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.billing.conftest import Buyer

from ximler.billing import counting, redemptions
from ximler.billing.coupons import (
    CouponAlreadyUsed,
    CouponExhausted,
    CouponExpired,
    CouponNotApplicable,
    CouponNotFound,
)
from ximler.billing.redemptions import Reservation, ReservationLapsed
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, XimlerError
from ximler.database import Database, connect
from ximler.database.monitoring import round_trips
from ximler.privacy import erasure
from ximler.schema.coupon import Coupon
from ximler.schema.plan import Plan
from ximler.schema.redemption import REDEMPTIONS

HOUR_MS = 3_600_000


async def coupon(database: Database, **terms: Any) -> Coupon:
    now = database.clock.now()
    values: dict[str, Any] = {
        "code": "FEW",
        "name": "Few",
        "type": "PERCENTAGE",
        "value": 50,
        "valid_from": now,
        "valid_until": now + timedelta(days=30),
        **terms,
    }
    return await database.coupons.insert(Coupon(**values))


async def used(database: Database, code: str = "FEW") -> int:
    """What the coupon counts; it must be what the redemptions say."""
    found = await database.coupons.get({"code": code})
    assert found.used_count == await database[REDEMPTIONS].count({"code": code, "counted": True})
    return found.used_count


async def confirm(database: Database, held: Reservation) -> None:
    async def write(transaction: Database) -> None:
        await redemptions.confirm(transaction, held.id, held.token, subscription_id=ObjectId())

    await database.transaction(write)


async def test_a_use_is_reserved_with_three_commands_and_confirmed_with_one(
    database: Database, ada: Actor, pro: Plan
) -> None:
    await coupon(database, max_uses=1)
    with round_trips() as trips:
        held = await redemptions.reserve(database, ada, " few ", plan=pro)
    assert len(trips) == 3
    assert held.discount.percent == 50
    assert await used(database) == 1
    await confirm(database, held)
    await confirm(database, held)
    assert await used(database) == 1
    assert not await redemptions.release(database, held.id, held.token)


async def test_64_people_at_the_last_use_one_gets_it(database: Database, buyer: Buyer, pro: Plan) -> None:
    await coupon(database, max_uses=1)
    people = [await buyer() for _ in range(64)]
    results = await asyncio.gather(
        *(redemptions.reserve(database, each, "FEW", plan=pro) for each in people), return_exceptions=True
    )
    assert sum(isinstance(result, Reservation) for result in results) == 1
    assert sum(isinstance(result, CouponExhausted) for result in results) == 63
    assert await used(database) == 1


@pytest.mark.slow
async def test_several_processes_at_the_last_uses_give_out_exactly_as_many(
    database: Database, mongodb_uri: str, buyer: Buyer, pro: Plan
) -> None:
    """A connection each: what waits in one process is counted together, so processes are what races."""
    await coupon(database, max_uses=25)
    processes = [await connect(mongodb_uri, name=database.name) for _ in range(6)]
    people = [await buyer() for _ in range(96)]
    results = await asyncio.gather(
        *(redemptions.reserve(processes[number % 6], each, "FEW", plan=pro) for number, each in enumerate(people)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Reservation) for result in results) == 25
    assert sum(isinstance(result, CouponExhausted) for result in results) == 71
    assert await used(database) == 25
    for process in processes:
        await process.close()


async def test_a_buyer_who_gives_up_does_not_take_the_others_along(database: Database, buyer: Buyer, pro: Plan) -> None:
    await coupon(database, max_uses=10)
    people = [await buyer() for _ in range(10)]
    tasks = [asyncio.create_task(redemptions.reserve(database, each, "FEW", plan=pro)) for each in people]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Reservation) for result in results[1:])
    database.clock.offset_ms = 2 * HOUR_MS
    await redemptions.sweep(database)
    assert await used(database) == 0


@pytest.mark.slow
async def test_a_coupon_with_as_many_uses_as_buyers_disappoints_nobody(
    database: Database, buyer: Buyer, pro: Plan
) -> None:
    await coupon(database, max_uses=96)
    people = [await buyer() for _ in range(96)]
    results = await asyncio.gather(*(redemptions.reserve(database, each, "FEW", plan=pro) for each in people))
    assert len({result.id for result in results}) == 96
    assert await used(database) == 96
    left = await database.coupons.get({"code": "FEW"})
    assert len(left.pending) < 96


@pytest.mark.slow
async def test_one_user_who_asks_64_times_at_once_has_one_reservation(
    database: Database, ada: Actor, pro: Plan
) -> None:
    await coupon(database, max_uses=10)
    results = await asyncio.gather(*(redemptions.reserve(database, ada, "FEW", plan=pro) for _ in range(64)))
    assert len({result.token for result in results}) == 1
    assert await used(database) == 1


async def test_a_use_that_was_confirmed_cannot_be_had_again(database: Database, ada: Actor, pro: Plan) -> None:
    await coupon(database)
    await confirm(database, await redemptions.reserve(database, ada, "FEW", plan=pro))
    with pytest.raises(CouponAlreadyUsed):
        await redemptions.reserve(database, ada, "FEW", plan=pro)


@pytest.mark.slow
async def test_release_and_reserve_racing_end_exact(database: Database, buyer: Buyer, pro: Plan) -> None:
    """Half of the holders give back, twice each, while as many newcomers come,
    and come again while it is used up."""
    await coupon(database, max_uses=16)
    holders = [await redemptions.reserve(database, await buyer(), "FEW", plan=pro) for _ in range(16)]
    newcomers = [await buyer() for _ in range(8)]

    async def patient(actor: Actor) -> Reservation:
        while True:
            try:
                return await redemptions.reserve(database, actor, "FEW", plan=pro)
            except CouponExhausted:
                await asyncio.sleep(0.01)

    leaving = holders[:8] + holders[:8]
    done = await asyncio.gather(
        *(redemptions.release(database, each.id, each.token) for each in leaving),
        *(patient(each) for each in newcomers),
    )
    assert sum(1 for result in done[:16] if result is True) == 8
    assert await used(database) == 16
    with pytest.raises(CouponExhausted):
        await redemptions.reserve(database, await buyer(), "FEW", plan=pro)


async def test_an_abandoned_reservation_makes_room_before_anybody_is_refused(
    database: Database, buyer: Buyer, pro: Plan
) -> None:
    await coupon(database, max_uses=1)
    abandoned = await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
    with pytest.raises(CouponExhausted):
        await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
    database.clock.offset_ms = 2 * HOUR_MS
    await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
    assert await used(database) == 1
    with pytest.raises(ReservationLapsed):
        await confirm(database, abandoned)


async def test_reserving_again_holds_the_same_use_for_longer(database: Database, ada: Actor, pro: Plan) -> None:
    await coupon(database, max_uses=1)
    first = await redemptions.reserve(database, ada, "FEW", plan=pro)
    database.clock.offset_ms = HOUR_MS // 2
    again = await redemptions.reserve(database, ada, "FEW", plan=pro)
    assert (again.id, again.token) == (first.id, first.token)
    assert again.expires_at > first.expires_at
    database.clock.offset_ms = HOUR_MS + 60_000
    assert await redemptions.sweep(database) == 0
    await confirm(database, again)


@pytest.mark.slow
async def test_a_sweep_gives_each_abandoned_use_back_once_also_when_two_sweep_at_once(
    database: Database, buyer: Buyer, pro: Plan
) -> None:
    await coupon(database)
    held = [await redemptions.reserve(database, await buyer(), "FEW", plan=pro) for _ in range(10)]
    await confirm(database, held[0])
    database.clock.offset_ms = 2 * HOUR_MS
    swept = await asyncio.gather(*(redemptions.sweep(database) for _ in range(4)))
    assert sum(swept) == 9
    assert await used(database) == 1
    assert (await database.coupons.get({"code": "FEW"})).pending == {}


class Killed(Exception):
    """A process that ends between two commands."""


async def die_after(database: Database, actor: Actor, plan: Plan, commands: int, monkeypatch: Any) -> None:
    """Reserve in a process that is killed after that many commands."""
    from ximler.database.collection import TypedCollection

    sent = 0
    real_insert, real_count, real_mark = (
        TypedCollection.insert_each,
        TypedCollection.find_and_patch,
        TypedCollection.patch_each,
    )

    def counting(real: Any) -> Any:
        async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal sent
            if sent == commands:
                raise Killed
            sent += 1
            return await real(self, *args, **kwargs)

        return send

    with monkeypatch.context() as patch:
        patch.setattr(TypedCollection, "insert_each", counting(real_insert))
        patch.setattr(TypedCollection, "find_and_patch", counting(real_count))
        patch.setattr(TypedCollection, "patch_each", counting(real_mark))
        with pytest.raises(Killed):
            await redemptions.reserve(database, actor, "FEW", plan=plan)


@pytest.mark.parametrize("commands", [0, 1, 2])
async def test_a_process_that_dies_between_two_commands_costs_no_use(
    database: Database, ada: Actor, buyer: Buyer, pro: Plan, commands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coupon(database, max_uses=1)
    await die_after(database, ada, pro, commands, monkeypatch)
    database.clock.offset_ms = 2 * 60_000
    # Whoever comes next gets the use, whether or not anybody has swept.
    held = await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
    assert await used(database) == 1
    assert await redemptions.sweep(database) == 0
    await confirm(database, held)
    with pytest.raises(CouponExhausted):
        await redemptions.reserve(database, ada, "FEW", plan=pro)


@pytest.mark.parametrize("commands", [1, 2])
async def test_whoever_dies_may_come_back_at_once(
    database: Database, ada: Actor, pro: Plan, commands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coupon(database, max_uses=2)
    await die_after(database, ada, pro, commands, monkeypatch)
    database.clock.offset_ms = 6_000
    await redemptions.reserve(database, ada, "FEW", plan=pro)
    database.clock.offset_ms = 2 * 60_000
    await redemptions.sweep(database)
    assert await used(database) == 1


async def test_a_slow_process_that_was_taken_for_dead_starts_again_and_counts_once(
    database: Database, ada: Actor, pro: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coupon(database, max_uses=1)
    real = counting._count
    stalls = iter([True])

    async def stalling(*args: Any) -> Any:
        counted = await real(*args)
        if next(stalls, False):
            database.clock.offset_ms = 2 * 60_000
            assert await redemptions.sweep(database) == 1
        return counted

    monkeypatch.setattr(counting, "_count", stalling)
    await redemptions.reserve(database, ada, "FEW", plan=pro)
    assert await used(database) == 1


async def test_a_payment_method_uses_a_coupon_once_under_whatever_address(
    database: Database, buyer: Buyer, pro: Plan
) -> None:
    await coupon(database)
    first = await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
    second = await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
    await redemptions.claim_fingerprint(database, first.id, first.token, "card-1")
    await redemptions.claim_fingerprint(database, first.id, first.token, "card-1")
    with pytest.raises(CouponAlreadyUsed):
        await redemptions.claim_fingerprint(database, second.id, second.token, "card-1")
    await redemptions.claim_fingerprint(database, second.id, second.token, "card-2")


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ({"active": False}, CouponExpired),
        ({"applicable_plans": ["enterprise"]}, CouponNotApplicable),
        ({"type": "FIXED", "value": 5, "currency": "EUR"}, CouponNotApplicable),
        ({"value": -50}, CouponNotApplicable),
        ({"value": 200}, CouponNotApplicable),
        ({"type": "FIXED", "value": -5}, CouponNotApplicable),
        ({"max_uses": 3, "used_count": 3}, CouponExhausted),
    ],
)
async def test_what_may_not_be_used_says_why_and_leaves_nothing_behind(
    database: Database, ada: Actor, pro: Plan, terms: dict[str, Any], problem: type[XimlerError]
) -> None:
    await coupon(database, **terms)
    with pytest.raises(problem):
        await redemptions.reserve(database, ada, "FEW", plan=pro)
    assert await database[REDEMPTIONS].count({}) == 0


async def test_a_coupon_is_valid_from_its_first_instant_until_before_its_last(
    database: Database, buyer: Buyer, pro: Plan
) -> None:
    now = database.clock.now()
    await coupon(database, valid_from=now + timedelta(hours=1), valid_until=now + timedelta(hours=2))
    for offset, valid in ((0, False), (HOUR_MS + 60_000, True), (2 * HOUR_MS + 60_000, False)):
        database.clock.offset_ms = offset
        if valid:
            await redemptions.reserve(database, await buyer(), "FEW", plan=pro)
        else:
            with pytest.raises(CouponExpired):
                await redemptions.reserve(database, await buyer(), "FEW", plan=pro)


async def test_an_amount_that_its_currency_does_not_have_is_refused_and_not_counted(
    database: Database, ada: Actor, pro: Plan
) -> None:
    await coupon(database, type="FIXED", value=0.001)
    with pytest.raises((Invalid, CouponNotApplicable)):
        await redemptions.reserve(database, ada, "FEW", plan=pro)
    assert await used(database) == 0


async def test_a_code_that_does_not_exist_is_not_found(database: Database, ada: Actor, pro: Plan) -> None:
    with pytest.raises(CouponNotFound):
        await redemptions.reserve(database, ada, "NOTHING", plan=pro)
    assert await database[REDEMPTIONS].count({}) == 0


async def test_a_coupon_that_a_mongoose_application_wrote_is_counted(database: Database, ada: Actor, pro: Plan) -> None:
    """Numbers as doubles, nulls, and none of our fields."""
    now = database.clock.now()
    await database.raw["coupons"].insert_one(
        {
            "code": "FEW", "name": "Few", "type": "FIXED", "value": 5.5, "maxUses": 2.0, "usedCount": 0.0,
            "validFrom": now - timedelta(days=1), "validUntil": now + timedelta(days=1), "applicablePlans": None, "__v": 0,
        }
    )  # fmt: skip
    held = await redemptions.reserve(database, ada, "FEW", plan=pro)
    assert held.discount.minor == 550
    assert await used(database) == 1


async def test_an_erased_users_uses_stay_counted_without_their_card(database: Database, ada: Actor, pro: Plan) -> None:
    await coupon(database)
    held = await redemptions.reserve(database, ada, "FEW", plan=pro)
    await redemptions.claim_fingerprint(database, held.id, held.token, "card-1")
    await confirm(database, held)
    await erasure._erase_from(database, REDEMPTIONS, ada.require_user())
    left = await database[REDEMPTIONS].get(held.id)
    assert (left.fingerprint, left.status) == (None, "CONFIRMED")
    assert await used(database) == 1
