"""Steps of several users in one transaction, whose commands go together."""

import pytest
from bson import ObjectId

from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.database.in_step import OutOfStep, in_step, in_step_or_alone
from ximler.database.monitoring import round_trips
from ximler.schema.charge import CHARGES, Charge
from ximler.schema.user import User


async def users(database: Database, count: int) -> list[User]:
    return [
        await database.users.insert(User(name=f"U{n}", email=f"{ObjectId()}@example.com", password="-"))
        for n in range(count)
    ]


def charge(user: User, charge_id: str) -> Charge:
    return Charge(
        id=charge_id,
        user_id=user.id,
        invoice_id=user.id,
        payment_id=user.id,
        amount_minor=1,
        currency="USD",
        method_id="m",
        customer_id="c",
    )


async def test_many_steps_cost_the_commands_of_one_and_each_gets_its_own_answers(database: Database) -> None:
    people = await users(database, 5)

    def step(number: int, user: User):  # type: ignore[no-untyped-def]
        async def write(transaction: Database) -> tuple[str, int, bool]:
            found = await transaction.users.get({"_id": user.id, "name": user.name})
            await transaction[CHARGES].insert(charge(user, f"charge {number}"))
            if number == 2:  # one that needs a command more, and rejoins the others
                await transaction.users.count({"_id": user.id})
            assert await transaction[CHARGES].patch({"_id": f"charge {number}"}, {"$inc": {"looks": number}})
            taken = await transaction[CHARGES].find_and_patch({"_id": f"charge {number}"}, {"$inc": {"ticket": 1}})
            await transaction[CHARGES].patch_many({"_id": f"charge {number}"}, {"$inc": {"looks": 10}})
            await transaction[CHARGES].delete_many({"_id": f"charge {number}", "looks": 13})
            missing = await transaction.users.find_one({"_id": ObjectId()})
            assert taken is not None
            return found.name, taken.looks, missing is None

        return write

    with round_trips() as trips:
        results = await in_step(database, [step(n, user) for n, user in enumerate(people)])
    assert results == [(f"U{n}", n, True) for n in range(5)]
    assert len(trips) == 10  # find, insert, count, update, update and find, update, delete, find, commit
    assert {each.looks async for each in database[CHARGES].stream({"ticket": 1})} == {10, 11, 12, 14}


async def test_steps_that_cannot_go_together_write_nothing(database: Database) -> None:
    people = await users(database, 3)
    await database[CHARGES].insert(charge(people[1], "taken"))

    def inserting(user: User, charge_id: str):  # type: ignore[no-untyped-def]
        return lambda transaction: transaction[CHARGES].insert(charge(user, charge_id))

    with pytest.raises(DocumentExists):
        await in_step(database, [inserting(people[0], "free"), inserting(people[1], "taken")])

    async def missing(transaction: Database) -> bool:
        return await transaction[CHARGES].patch({"_id": "nowhere"}, {"$inc": {"looks": 1}})

    async def looked(transaction: Database) -> bool:
        return await transaction[CHARGES].patch({"_id": "taken"}, {"$inc": {"looks": 1}})

    with pytest.raises(OutOfStep):
        await in_step(database, [looked, missing])

    async def broken(transaction: Database) -> bool:
        await transaction[CHARGES].get("taken")
        raise ZeroDivisionError

    with pytest.raises(OutOfStep):
        await in_step(database, [looked, broken])
    assert [each.looks for each in await database[CHARGES].find({})] == [0]
    assert await in_step_or_alone(database, [looked, missing]) == [True, False]


async def test_a_conflict_with_another_process_is_reported_at_once(database: Database) -> None:
    ada, bob = await users(database, 2)

    async def renaming(transaction: Database) -> None:
        await transaction.users.get(ada.id)
        await database.users.patch({"_id": ada.id}, {"$set": {"name": "Other"}})
        await transaction.users.patch({"_id": ada.id}, {"$set": {"name": "Ours"}})

    async def reading(transaction: Database) -> None:
        await transaction.users.get(bob.id)

    with pytest.raises(OutOfStep):
        await in_step(database, [renaming, reading])
    assert (await database.users.get(ada.id)).name == "Other"
