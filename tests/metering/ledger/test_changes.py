"""Projects and bytes over time: the ledger adds up to the gauge, despite races and crashes."""

import asyncio
import contextlib
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ximler import setup
from ximler.core.actor import Actor
from ximler.core.clock import to_ms
from ximler.core.errors import LimitExceeded, NotFound
from ximler.database import Database, connect
from ximler.database.monitoring import round_trips
from ximler.embedded import server
from ximler.metering import corrections
from ximler.metering.ledger import changes, rows
from ximler.metering.reports.series import series
from ximler.projects import projects, trash
from ximler.schema.gauge import GAUGES
from ximler.schema.user import User

OPERATOR = Actor(kind="operator", via="cli")
HOUR_MS = 3_600_000
ROOT = Path(__file__).parents[3]


async def told(database: Database, user_id: ObjectId | None) -> dict[tuple[str, int], int]:
    """By resource and hour: what the ledger has."""
    documents = await database.usage.find({"userId": user_id})
    found = {(row.resource_type, to_ms(row.period_start) // HOUR_MS): int(row.amount) for row in documents}
    assert len(found) == len(documents)
    return {place: amount for place, amount in found.items() if amount}


async def existing(database: Database, user_id: ObjectId | None) -> dict[str, int]:
    stored = await database.raw["projects"].find({"userId": user_id}).to_list()
    alive = sum(project.get("deletedAt") is None for project in stored)
    return {"projects": alive, "storage": sum(int(project["storageSize"]) for project in stored)}


def sums(by_hour: dict[tuple[str, int], int]) -> dict[str, int]:
    total = Counter({"projects": 0, "storage": 0})
    for (resource, _), amount in by_hour.items():
        total[resource] += amount
    return dict(total)


async def test_created_and_deleted_projects_are_in_the_ledger_by_hour(database: Database, person: Actor) -> None:
    made = [await projects.create(database, person, name="P", canvas_data={"x": "y" * n}) for n in (10, 20, 30)]
    sizes = [project.storage_size for project in made]
    first = to_ms(database.clock.now()) // HOUR_MS
    assert await changes.settle(database) == 1
    database.clock.offset_ms += 2 * HOUR_MS
    await projects.delete(database, person, made[0].id)
    await projects.update(database, person, made[1].id, {"canvas_data": None})
    smaller = (await projects.get(database, person, made[1].id)).storage_size
    assert await changes.settle(database) == 1
    assert await changes.settle(database) == 0
    assert await told(database, person.user_id) == {
        ("projects", first): 3,
        ("storage", first): sum(sizes),
        ("projects", first + 2): -1,
        ("storage", first + 2): smaller - sizes[1],
    }
    database.clock.offset_ms += HOUR_MS
    await trash.purge(database, person, made[0].id)
    assert await changes.settle(database) == 1
    assert (await told(database, person.user_id))["storage", first + 3] == -sizes[0]
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []


async def test_a_series_of_projects_has_the_changes_and_the_level(database: Database, person: Actor) -> None:
    start = rows.start_of(to_ms(database.clock.now()) // HOUR_MS)
    made = [await projects.create(database, person, name="P") for _ in range(3)]
    database.clock.offset_ms += 2 * HOUR_MS
    await projects.delete(database, person, made[0].id)
    await changes.settle(database)
    until = start + timedelta(hours=4)
    points = await series(database, person, "projects", since=start - timedelta(hours=1), until=until, by="HOUR")
    assert [(point.amount, point.level) for point in points] == [(0, 0), (3, 3), (0, 3), (-1, 2), (0, 2)]
    points = await series(database, person, "projects", since=start + timedelta(hours=1), until=until, by="HOUR")
    assert [(point.amount, point.level) for point in points] == [(0, 3), (-1, 2), (0, 2)]
    points = await series(database, person, "storage", since=start, until=start + timedelta(days=40), by="MONTH")
    assert points[-1].level == (await existing(database, person.user_id))["storage"]
    [calls] = await series(database, person, "apiCalls", since=start, until=start + timedelta(hours=1), by="HOUR")
    assert calls.level is None


@pytest.mark.parametrize("theirs", [0, 2])
async def test_projects_of_another_application_are_a_change_of_the_hour_of_their_first_count(
    database: Database, person: Actor, theirs: int
) -> None:
    for _ in range(theirs):
        await database.raw["projects"].insert_one({"userId": person.user_id, "name": "n", "storageSize": 10})
    await projects.create(database, person, name="P")
    await changes.settle(database)
    assert sums(await told(database, person.user_id)) == await existing(database, person.user_id)


async def test_a_project_of_another_application_can_be_deleted(database: Database, person: Actor) -> None:
    """Without a gauge everything is recounted."""
    for size in (10, 5):
        await database.raw["projects"].insert_one({"userId": person.user_id, "name": "n", "storageSize": size})
    [one, _] = (await projects.page(database, person)).items
    await projects.delete(database, person, one.id)
    await changes.settle(database)
    assert sums(await told(database, person.user_id)) == await existing(database, person.user_id)


async def test_a_difference_between_ledger_and_gauge_is_corrected_in_this_hour(
    database: Database, person: Actor
) -> None:
    made = [await projects.create(database, person, name="P") for _ in range(2)]
    await changes.settle(database)
    before = await told(database, person.user_id)
    await database.raw["usage"].update_one({"resourceType": "projects"}, {"$inc": {"amount": 7}})
    await database.raw["projects"].delete_one({"_id": made[0].id})
    size = made[0].storage_size
    expected = {
        ("gauge", "projects", 2, 1),
        ("gauge", "storage_bytes", 2 * size, size),
        ("ledger", "projects", 9, 1),
        ("ledger", "storage_bytes", 2 * size, size),
    }
    database.clock.offset_ms += HOUR_MS
    for dry_run in (True, False):
        found = await corrections.rebuild(database, OPERATOR, person.user_id, dry_run=dry_run)
        assert {(drift.of, drift.what, drift.was, drift.now) for drift in found} == expected
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    after = await told(database, person.user_id)
    assert sums(after) == {"projects": 1, "storage": size}
    assert max(after)[1] == max(before)[1] + 1
    (entry,) = await database.raw["auditlogs"].find({"action": "metering.usage.rebuilt"}).to_list()
    assert entry["metadata"]["before"]["ledger projects"] == 9


@pytest.mark.slow
async def test_settling_costs_three_commands_however_many_users_and_one_for_none(database: Database) -> None:
    people = [
        (await database.users.insert(User(name="n", email=f"{ObjectId()}@example.com", password="-"))).id
        for _ in range(20)
    ]
    for user_id in people:
        await projects.create(database, Actor(kind="user", user_id=user_id), name="P")
    with round_trips() as trips:
        assert await changes.settle(database) == 20
    assert trips == [("find", "gauges"), ("update", "usage"), ("update", "gauges")]
    with round_trips() as trips:
        assert await changes.settle(database) == 0
    assert trips == [("find", "gauges")]
    kept = await database.raw["gauges"].find({}).to_list()
    assert all(gauge["hours"] == {} and "due" not in gauge for gauge in kept)


async def test_a_recreated_gauge_is_distinguished_from_the_old_one(database: Database, person: Actor) -> None:
    made = await projects.create(database, person, name="P")
    await changes.settle(database)
    await database.raw["gauges"].delete_many({})
    await projects.delete(database, person, made.id)
    await projects.create(database, person, name="Q")
    await changes.settle(database)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) != []  # it was counted anew, from nothing
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []
    assert sums(await told(database, person.user_id)) == await existing(database, person.user_id)


@pytest.mark.parametrize("has_it", [False, True])
async def test_a_step_that_an_earlier_version_left_half_done_is_completed(
    database: Database, person: Actor, has_it: bool
) -> None:
    await projects.create(database, person, name="P")
    gauge = await database[GAUGES].get({"_id": person.user_id})
    now, number = database.clock.now(), to_ms(database.clock.now())
    hour = to_ms(now) // HOUR_MS
    await database.raw["gauges"].update_one(
        {"_id": person.user_id},
        {"$set": {"sent": gauge.hours, "hours": {}, "number": number}, "$unset": {"steps": ""}},
    )
    for resource, amount in gauge.hours[f"h{hour}"].items() if has_it else ():
        theirs = {"userId": person.user_id, "resourceType": resource, "periodStart": rows.start_of(hour)}
        metadata = {"changed": {"through": number}}
        await database.raw["usage"].insert_one(
            {"_id": rows.row_id(gauge.id, resource, hour), **theirs, "periodEnd": now, "amount": amount}
            | {"metadata": metadata}
        )
    await projects.create(database, person, name="Q")
    await changes.settle(database)
    assert sums(await told(database, person.user_id)) == await existing(database, person.user_id)
    assert await corrections.rebuild(database, OPERATOR, person.user_id) == []


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"hours": {"x": 1, "h1": "?"}}, {"projects": "many"}, {"hours": {"h9": None}}])
async def test_a_gauge_with_a_value_of_a_wrong_type_does_not_block_others(
    database: Database, wrong: dict[str, Any]
) -> None:
    people = [
        (await database.users.insert(User(name="n", email=f"{ObjectId()}@example.com", password="-"))).id
        for _ in range(20)
    ]
    for user_id in people:
        await projects.create(database, Actor(kind="user", user_id=user_id), name="P")
    await database.raw["gauges"].update_one({"_id": people[7]}, {"$set": wrong}, bypass_document_validation=True)
    await changes.settle(database)
    for user_id in people[:7] + people[8:]:
        assert sums(await told(database, user_id)) == await existing(database, user_id)


class Died(Exception):
    pass


async def die(*_: Any, **__: Any) -> Any:
    raise Died


class History(RuleBasedStateMachine):
    """Writes, settlers that die at any step or come late, and hours that pass."""

    uri = ""
    loop: asyncio.AbstractEventLoop
    database: Database

    @initialize(theirs=st.integers(0, 1))
    def begin(self, theirs: int) -> None:
        self.expected: Counter[tuple[str, int]] = Counter()
        self.level = {"projects": 0, "storage": 0}
        self.known: list[ObjectId] = []
        self.late: list[Any] = []
        self.run(self._begin(theirs))

    async def _begin(self, theirs: int) -> None:
        self.database.clock.offset_ms = 0
        user = await self.database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
        self.user_id, self.actor = user.id, Actor(kind="user", via="session", user_id=user.id)
        for _ in range(theirs):
            made = {"userId": user.id, "name": "theirs", "storageSize": 10}
            self.known.append((await self.database.raw["projects"].insert_one(made)).inserted_id)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def _write(self, *works: Any) -> None:
        """All at once; what they change is expected in this hour."""
        hour = to_ms(self.database.clock.now()) // HOUR_MS
        for end in await asyncio.gather(*works, return_exceptions=True):
            if isinstance(end, BaseException) and not isinstance(end, LimitExceeded | NotFound):
                raise end
        if await self.database[GAUGES].find_one({"_id": self.user_id}) is None:
            return
        now = await existing(self.database, self.user_id)
        for resource, count in now.items():
            self.expected[resource, hour] += count - self.level[resource]
        self.level = now

    async def _create(self, size: int) -> None:
        made = await projects.create(self.database, self.actor, name="n", canvas_data={"x": "y" * size})
        self.known.append(made.id)

    def _one(self, which: int) -> ObjectId:
        return self.known[which % len(self.known)] if self.known else ObjectId()

    @rule(size=st.integers(0, 300))
    def create(self, size: int) -> None:
        self.run(self._write(self._create(size)))

    @rule(which=st.integers(0, 9), size=st.integers(0, 300))
    def update(self, which: int, size: int) -> None:
        canvas = {"canvas_data": {"x": "y" * size}}
        self.run(self._write(projects.update(self.database, self.actor, self._one(which), canvas)))

    @rule(which=st.integers(0, 9))
    def delete(self, which: int) -> None:
        self.run(self._write(projects.delete(self.database, self.actor, self._one(which))))

    @rule(which=st.integers(0, 9))
    def restore(self, which: int) -> None:
        self.run(self._write(projects.restore(self.database, self.actor, self._one(which))))

    @rule(which=st.integers(0, 9))
    def purge(self, which: int) -> None:
        self.run(self._write(trash.purge(self.database, self.actor, self._one(which))))

    @rule()
    def empty_trash(self) -> None:
        self.run(self._write(trash.empty(self.database, self.actor)))

    @rule(which=st.integers(0, 9), size=st.integers(0, 300))
    def all_at_once(self, which: int, size: int) -> None:
        self.run(
            self._write(
                self._create(size),
                changes.settle(self.database),
                projects.delete(self.database, self.actor, self._one(which)),
                changes.settle(self.database),
                self._create(size),
                projects.restore(self.database, self.actor, self._one(which + 1)),
                trash.purge(self.database, self.actor, self._one(which + 1)),
            )
        )

    @rule(hours=st.sampled_from([1, 1, 30, 24 * 60]))
    def wait(self, hours: int) -> None:
        self.database.clock.offset_ms += hours * HOUR_MS

    @rule(step=st.sampled_from(["changes._add", "rows.apply", "changes._remove"]), some=st.integers(0, 3))
    def die_while_settling(self, step: str, some: int) -> None:
        apply = rows.apply

        async def apply_some(database: Database, changes: Any) -> None:
            await apply(database, list(changes)[:some])
            raise Died

        async def work() -> None:
            broken = apply_some if step == "rows.apply" else die
            with mock.patch(f"ximler.metering.ledger.{step}", broken), contextlib.suppress(Died):
                await changes.settle(self.database)

        self.run(work())

    @rule()
    def read_the_gauge_and_be_held_up(self) -> None:
        self.late.append(self.run(changes._due(self.database, self.user_id)))

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 9))
    def go_on_late(self, which: int) -> None:
        found = self.late[which % len(self.late)]

        async def work() -> None:
            await changes._add(self.database, found)
            await changes._remove(self.database, found)

        self.run(work())

    @rule()
    def settle(self) -> None:
        async def work() -> None:
            await changes.settle(self.database)
            assert await told(self.database, self.user_id) == {k: n for k, n in self.expected.items() if n}

        self.run(work())

    @rule(dry_run=st.booleans())
    def rebuild(self, dry_run: bool) -> None:
        if self.level["projects"]:  # no precondition: races decide it, and it must not decide what comes next
            assert self.run(corrections.rebuild(self.database, OPERATOR, self.user_id, dry_run=dry_run)) == []

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "user_id"):
            self.run(self._check())

    async def _check(self) -> None:
        gauge = await self.database[GAUGES].find_one({"_id": self.user_id})
        if gauge is not None:
            assert {"projects": gauge.projects, "storage": gauge.storage_bytes} == self.level
            counted = await corrections._in_ledger(self.database, gauge)
            assert {"projects": counted.projects, "storage": counted.storage_bytes} == self.level

    def teardown(self) -> None:
        if hasattr(self, "user_id"):
            self.settle()
            self.run(self._end())

    async def _end(self) -> None:
        if await self.database[GAUGES].find_one({"_id": self.user_id}) is None:
            return
        assert await corrections.rebuild(self.database, OPERATOR, self.user_id) == []
        now = self.database.clock.now()
        for resource in changes.RESOURCES:
            points = await series(
                self.database, self.actor, resource, since=now, until=now + timedelta(hours=1), by="HOUR"
            )
            assert points[-1].level == self.level[resource]


@pytest.mark.slow
def test_any_history_of_projects_adds_up(mongodb_uri: str) -> None:
    _run(mongodb_uri, examples=12, steps=30)


@pytest.mark.soak
def test_a_thousand_histories_of_projects_add_up(mongodb_uri: str) -> None:
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


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[server.Server]:
    """A server that aborts transactions of dead processes after 3 seconds, instead of a minute."""
    running = await server.start(tmp_path / "data", parameters={"transactionLifetimeLimitSeconds": "3"})
    yield running
    await running.stop()


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.slow
async def test_processes_that_are_killed_while_they_write_and_settle_leave_a_true_history(
    own_server: server.Server, kills: int
) -> None:
    database = await connect(own_server.uri, name="ximler")
    try:
        await setup.initialise(database)
        user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))

        async def start() -> asyncio.subprocess.Process:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.metering.ledger.maker", own_server.uri, database.name, str(user.id),
                cwd=ROOT, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            assert await process.stdout.readline() == b"begun\n"
            return process

        running = [await start(), await start()]
        for n in range(kills):
            await asyncio.sleep(0.1 + secrets.randbelow(300) / 1000)
            running[n % 2].kill()
            await running[n % 2].wait()
            running[n % 2] = await start()
        for process in running:
            process.kill()
            await process.wait()
        await changes.settle(database)
        by_hour = await told(database, user.id)
        assert sums(by_hour) == await existing(database, user.id)
        assert await database.raw["auditlogs"].count_documents({"action": "projects.project.created"}) > kills
        assert await corrections.rebuild(database, OPERATOR, user.id) == []
    finally:
        await database.close()
