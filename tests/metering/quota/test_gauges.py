"""Strict limits: whatever races, a gauge is what exists, and never more than the plan allows."""

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from tests.metering.conftest import Subscribe

from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded, NotFound, XimlerError
from ximler.database import Database
from ximler.metering.limits.plans import Limits
from ximler.metering.quota import gauges
from ximler.metering.reports.overview import overview
from ximler.projects import projects, trash
from ximler.schema.plan import Plan, PlanLimits
from ximler.schema.user import User

TINY = 500  # bytes of storage in the plan of that name


@pytest.fixture
async def tiny(database: Database, person: Actor, subscribe: Subscribe) -> Actor:
    """With room for 500 bytes in any number of projects."""
    await database.plans.insert(
        Plan(
            id="tiny",
            name="Tiny",
            price=0,
            interval="MONTH",
            limits=PlanLimits(projects=-1, storage=TINY / 1e9, api_calls=1),
        )
    )
    await subscribe(person, "tiny")
    return person


async def attempt(*operations: Any) -> Counter[str]:
    """Run them all at once; how many ended how. Anything but an error that we raise on purpose is raised."""
    ends: Counter[str] = Counter()
    for end in await asyncio.gather(*operations, return_exceptions=True):
        if isinstance(end, BaseException) and not isinstance(end, XimlerError):
            raise end
        ends[end.code if isinstance(end, XimlerError) else "OK"] += 1
    return ends


async def gauge_and_truth(database: Database, actor: Actor) -> tuple[tuple[int, int], tuple[int, int]]:
    """(projects, bytes): as the gauge says, and as they are."""
    gauge = await database.raw["gauges"].find_one({"_id": actor.user_id}) or {"projects": 0, "storageBytes": 0}
    stored = await database.raw["projects"].find({"userId": actor.user_id}).to_list()
    alive = sum(project.get("deletedAt") is None for project in stored)
    return (gauge["projects"], gauge["storageBytes"]), (alive, sum(int(project["storageSize"]) for project in stored))


def theirs(actor: Actor, *, size: Any = 0, **fields: Any) -> dict[str, Any]:
    """A project as another application inserts it."""
    return {"userId": actor.user_id, "name": "theirs", "storageSize": size, **fields}


@pytest.mark.slow
async def test_fifty_projects_created_at_once_leave_exactly_three(database: Database, person: Actor) -> None:
    ends = await attempt(*(projects.create(database, person, name=f"P{n}") for n in range(50)))
    assert ends == {"OK": 3, "QUOTA_EXCEEDED": 47}
    gauge, truth = await gauge_and_truth(database, person)
    assert gauge == truth
    assert truth[0] == 3

    page = await projects.page(database, person)
    await projects.delete(database, person, page.items[0].id)
    ends = await attempt(*(projects.create(database, person, name="again") for _ in range(20)))
    assert ends == {"OK": 1, "QUOTA_EXCEEDED": 19}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "fit"), [(1, 2), (2, 1), (3, 0), (5, 0)])
async def test_earlier_projects_of_another_application_count(
    database: Database, person: Actor, before: int, fit: int
) -> None:
    await database.raw["projects"].insert_many([theirs(person, size=10) for _ in range(before)])
    await database.raw["projects"].insert_one(theirs(person, size=5, deletedAt=database.clock.now()))
    ends = await attempt(*(projects.create(database, person, name=f"P{n}") for n in range(20)))
    assert (ends["OK"], ends["QUOTA_EXCEEDED"]) == (fit, 20 - fit)
    gauge, truth = await gauge_and_truth(database, person)
    assert truth[0] == max(before, 3)
    if fit:
        assert gauge == truth


@pytest.mark.slow
async def test_a_first_create_and_a_delete_of_another_applications_project_do_not_lose_each_other(
    database: Database,
) -> None:
    """Neither has a gauge to meet at: who makes it must not count what the other is about to remove."""
    for _ in range(15):
        user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
        person = Actor(kind="user", user_id=user.id)
        made = await database.raw["projects"].insert_many([theirs(person, size=7) for _ in range(2)])
        ends = await attempt(
            projects.create(database, person, name="first"),
            *(projects.delete(database, person, project_id) for project_id in made.inserted_ids),
        )
        assert ends == {"OK": 3}
        gauge, truth = await gauge_and_truth(database, person)
        assert gauge == truth
        assert truth[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_a_random_history_of_racing_changes_keeps_the_gauge_correct(
    database: Database, person: Actor, seed: int
) -> None:
    rng = random.Random(seed)
    if seed % 2:
        await database.raw["projects"].insert_many([theirs(person, size=n) for n in range(2)])
    known = [found["_id"] async for found in database.raw["projects"].find({"userId": person.user_id})]

    async def change() -> None:
        match rng.choice(["create", "create", "update", "delete", "delete", "restore", "purge", "empty"]):
            case "create":
                made = await projects.create(database, person, name="n", canvas_data={"x": "y" * rng.randrange(300)})
                known.append(made.id)
            case "update":
                canvas = {"x": "y" * rng.randrange(300)}
                await projects.update(database, person, rng.choice(known or [ObjectId()]), {"canvas_data": canvas})
            case "delete":
                await projects.delete(database, person, rng.choice(known or [ObjectId()]))
            case "restore":
                await projects.restore(database, person, rng.choice(known or [ObjectId()]))
            case "purge":
                await trash.purge(database, person, rng.choice(known or [ObjectId()]))
            case "empty":
                await trash.empty(database, person)

    total: Counter[str] = Counter()
    for _ in range(6):
        ends = await attempt(*(change() for _ in range(12)))
        assert ends.keys() <= {"OK", "QUOTA_EXCEEDED", "NOT_FOUND"}
        total += ends
        gauge, truth = await gauge_and_truth(database, person)
        assert gauge == truth
        assert truth[0] <= 3
    assert total["OK"] > 10


@pytest.mark.slow
async def test_a_write_conflict_storm_on_one_project_ends_in_answers_only(database: Database, person: Actor) -> None:
    made = await projects.create(database, person, name="hot")
    ends = await attempt(
        *(projects.update(database, person, made.id, {"canvas_data": {"n": "x" * n}}) for n in range(40)),
        *(projects.delete(database, person, made.id) for _ in range(10)),
        *(projects.restore(database, person, made.id) for _ in range(10)),
    )
    assert ends.keys() <= {"OK", "NOT_FOUND"}
    gauge, truth = await gauge_and_truth(database, person)
    assert gauge == truth


@pytest.mark.parametrize("seed", range(4))
async def test_delete_restore_update_and_purge_of_one_project_race_to_a_true_gauge(
    database: Database, person: Actor, seed: int
) -> None:
    rng = random.Random(seed)
    made = await projects.create(database, person, name="hot", canvas_data={"n": "x" * 50})
    operations = [
        *(projects.update(database, person, made.id, {"canvas_data": {"n": "x" * n}}) for n in range(6)),
        *(projects.delete(database, person, made.id) for _ in range(6)),
        *(projects.restore(database, person, made.id) for _ in range(6)),
        *(trash.purge(database, person, made.id) for _ in range(3)),
        trash.empty(database, person),
    ]
    rng.shuffle(operations)
    ends = await attempt(*operations)
    assert ends.keys() <= {"OK", "NOT_FOUND"}
    gauge, truth = await gauge_and_truth(database, person)
    assert gauge == truth
    assert await trash.empty(database, person) in (0, 1)
    gauge, truth = await gauge_and_truth(database, person)
    assert gauge == truth


@pytest.mark.slow
async def test_a_first_create_counts_a_trash_that_is_emptied_at_the_same_moment(database: Database) -> None:
    """Neither has a gauge to meet at, and what the one counts the other removes."""
    for _ in range(10):
        user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
        person = Actor(kind="user", user_id=user.id)
        gone = {"deletedAt": database.clock.now() - timedelta(days=31)}
        await database.raw["projects"].insert_many([theirs(person, size=7, **gone) for _ in range(2)])
        await attempt(
            projects.create(database, person, name="first"),
            trash.empty(database, person),
            trash.purge_expired(database=database),
        )
        gauge, truth = await gauge_and_truth(database, person)
        assert gauge == truth == (1, 10)


async def test_storage_is_limited_on_create_and_update_and_the_trash_counts(database: Database, tiny: Actor) -> None:
    half = {"x": "y" * 200}
    first = await projects.create(database, tiny, name="a", canvas_data=half)
    with pytest.raises(LimitExceeded) as refused:
        await projects.create(database, tiny, name="b", canvas_data={"x": "y" * 400})
    assert refused.value.fields == {"storage": "limit 500 reached"}
    second = await projects.create(database, tiny, name="b", canvas_data=half)
    with pytest.raises(LimitExceeded):
        await projects.update(database, tiny, second.id, {"canvas_data": {"x": "y" * 400}})
    await projects.delete(database, tiny, first.id)
    with pytest.raises(LimitExceeded, match="empty the trash"):
        await projects.update(database, tiny, second.id, {"canvas_data": {"x": "y" * 400}})
    await trash.purge(database, tiny, first.id)
    await projects.update(database, tiny, second.id, {"canvas_data": {"x": "y" * 400}})
    gauge, truth = await gauge_and_truth(database, tiny)
    assert gauge == truth
    assert truth[1] <= TINY


@pytest.mark.slow
async def test_racing_creations_never_exceed_the_storage_limit(database: Database, tiny: Actor) -> None:
    size = (await projects.create(database, tiny, name="a", canvas_data={"x": "y" * 60})).storage_size
    ends = await attempt(*(projects.create(database, tiny, name="a", canvas_data={"x": "y" * 60}) for _ in range(15)))
    assert ends["OK"] == TINY // size - 1
    gauge, truth = await gauge_and_truth(database, tiny)
    assert gauge == truth


async def test_a_lowered_limit_blocks_growth_and_permits_removal(database: Database, person: Actor) -> None:
    made = [await projects.create(database, person, name=f"P{n}", canvas_data={"x": "y" * 300}) for n in range(3)]
    await database.plans.patch({"id": "free"}, {"$set": {"limits.projects": 1, "limits.storage": 0.0000005}})
    with pytest.raises(LimitExceeded):
        await projects.create(database, person, name="more")
    with pytest.raises(LimitExceeded):
        await projects.update(database, person, made[0].id, {"canvas_data": {"x": "y" * 301}})
    shrunk = await projects.update(database, person, made[0].id, {"canvas_data": {"x": "y"}})
    assert shrunk.storage_size < made[0].storage_size
    await projects.update(database, person, made[1].id, {"name": "texts are always welcome"})
    await projects.delete(database, person, made[1].id)
    with pytest.raises(LimitExceeded):
        await projects.restore(database, person, made[1].id)
    shown = {u.resource: u for u in (await overview(database, person, [person.user_id]))[person.user_id]}
    assert (shown["projects"].used, shown["projects"].limit, shown["projects"].remaining) == (2, 1, 0)
    assert (shown["storage"].used > 500, shown["storage"].remaining) == (True, 0), "what is in the trash counts"
    assert await trash.empty(database, person) == 1
    shown = {u.resource: u for u in (await overview(database, person, [person.user_id]))[person.user_id]}
    assert shown["storage"].remaining == 500 - shown["storage"].used


@pytest.mark.slow
async def test_an_unlimited_plan_counts_and_never_refuses(
    database: Database, person: Actor, subscribe: Subscribe
) -> None:
    await subscribe(person, "enterprise")
    ends = await attempt(*(projects.create(database, person, name=f"P{n}") for n in range(20)))
    assert ends == {"OK": 20}
    shown = (await overview(database, person, [person.user_id]))[person.user_id][0]
    assert (shown.used, shown.limit, shown.remaining) == (20, None, None)


async def test_a_larger_plan_raises_the_limit_at_once(database: Database, person: Actor, subscribe: Subscribe) -> None:
    for n in range(3):
        await projects.create(database, person, name=f"P{n}")
    with pytest.raises(LimitExceeded, match="Free allows 3 projects"):
        await projects.create(database, person, name="four")
    await subscribe(person, "pro")
    await projects.create(database, person, name="four")
    await database.subscriptions.patch({"userId": person.user_id}, {"$set": {"status": "CANCELLED"}})
    with pytest.raises(LimitExceeded):
        await projects.create(database, person, name="five")


async def test_a_rejection_names_the_exhausted_resource(database: Database, tiny: Actor) -> None:
    await database.plans.patch({"id": "tiny"}, {"$set": {"limits.projects": 1}})
    await projects.create(database, tiny, name="a", canvas_data={"x": "y" * 400})
    with pytest.raises(LimitExceeded) as refused:
        await projects.create(database, tiny, name="b", canvas_data={"x": "y" * 400})
    assert refused.value.fields == {"projects": "limit 1 reached"}
    await database.plans.patch({"id": "tiny"}, {"$set": {"limits.projects": 2}})
    with pytest.raises(LimitExceeded) as refused:
        await projects.create(database, tiny, name="b", canvas_data={"x": "y" * 400})
    assert refused.value.fields == {"storage": "limit 500 reached"}


async def test_a_rejected_first_project_leaves_no_gauge(database: Database, person: Actor) -> None:
    await database.plans.patch({"id": "free"}, {"$set": {"limits.projects": 0}})
    with pytest.raises(LimitExceeded):
        await projects.create(database, person, name="none")
    assert await database.raw["gauges"].count_documents({}) == 0
    assert await database.raw["projects"].count_documents({}) == 0


@pytest.mark.slow
async def test_sizes_of_any_number_type_are_read(database: Database, person: Actor, subscribe: Subscribe) -> None:
    sizes = [7.0, Int64(8), Decimal128("9"), None, 5e9]
    made = await database.raw["projects"].insert_many([theirs(person, size=size) for size in sizes])
    shown = (await overview(database, person, [person.user_id]))[person.user_id]
    assert (shown[0].used, shown[1].used) == (5, 5_000_000_024)
    await subscribe(person, "pro")
    for project_id in made.inserted_ids:
        await projects.update(database, person, project_id, {"canvas_data": {"a": 1}})
        await projects.delete(database, person, project_id)
    assert await trash.empty(database, person) == len(sizes)
    assert (await gauge_and_truth(database, person))[0] == (0, 0)


async def test_a_gauge_changes_only_in_a_transaction(database: Database, person: Actor) -> None:
    with pytest.raises(RuntimeError, match="transaction"):
        await gauges.reserve(database, person.user_id, Limits("Free", 3, 100, 100), projects=1)


async def test_units_cannot_be_released_twice(database: Database, person: Actor) -> None:
    made = await projects.create(database, person, name="once")
    await projects.delete(database, person, made.id)
    with pytest.raises(NotFound):
        await projects.delete(database, person, made.id)
    assert (await gauge_and_truth(database, person))[0] == (0, made.storage_size)
    await trash.purge(database, person, made.id)
    with pytest.raises(NotFound):
        await trash.purge(database, person, made.id)
    assert (await gauge_and_truth(database, person))[0] == (0, 0)
