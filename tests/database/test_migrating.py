"""Migrations: each document is changed exactly once despite killed and frozen migrators."""

import asyncio
import secrets
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient
from tests.database.migrator import BATCH, MIGRATION

from ximler import setup
from ximler.core.actor import Actor
from ximler.database import Database, connect, migrating, sync
from ximler.embedded import server
from ximler.migrations import MIGRATIONS
from ximler.projects import projects, search
from ximler.schema.meta import META, SCHEMA_VERSION, Meta
from ximler.schema.migration import MIGRATIONS as STATES

pytestmark = pytest.mark.slow

MANY = 40 * BATCH + 7


@pytest.fixture
async def things(own_server: server.Server) -> AsyncIterator[Database]:
    """Documents of version 1, on a server that ends a transaction of a frozen process soon."""
    async with AsyncMongoClient(own_server.admin_uri) as admin:
        await admin.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=3)
        database = await connect(own_server.uri, name=f"migrating_{secrets.token_hex(3)}")
        await database[META].insert(Meta(id="schema", version=1))
        await database.raw["things"].insert_many([{"_id": n} for n in range(MANY)])
        yield database
        await database.client.drop_database(database.name)
        await database.close()
        await admin.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=60)


async def start(database: Database, own_server: server.Server) -> Process:
    command = (sys.executable, "-m", "tests.database.migrator", own_server.uri, database.name)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE)


async def inside(migrator: Process, batches: int) -> None:
    """Returns while it is inside its transaction."""
    assert migrator.stdout
    for _ in range(batches):
        assert await asyncio.wait_for(migrator.stdout.readline(), 60) == b"inside\n"


async def finished(*migrators: Process) -> list[bytes]:
    said = [await asyncio.wait_for(migrator.communicate(), 100) for migrator in migrators]
    assert [migrator.returncode for migrator in migrators] == [0] * len(migrators)
    return [line for out, _ in said for line in out.splitlines() if line.startswith(b"finished")]


async def changed(database: Database) -> set[int]:
    return set(await database.raw["things"].distinct("changed"))


async def test_two_migrators_at_once_change_each_document_once(things: Database, own_server: server.Server) -> None:
    both = [await start(things, own_server) for _ in range(2)]
    assert await finished(*both) == [f"finished {MANY} 0".encode()]
    assert await changed(things) == {1}
    assert (await things[META].get("schema")).version == 2
    state = await things[STATES].get("0002_things")
    assert (state.changed, state.finished_at is not None) == (MANY, True)


async def test_one_that_is_killed_in_a_batch_is_continued_by_the_next(
    things: Database, own_server: server.Server
) -> None:
    killed = await start(things, own_server)
    await inside(killed, 3)
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    some = (await things[STATES].get("0002_things")).changed
    assert 0 < some < MANY
    assert await finished(await start(things, own_server)) == [f"finished {MANY} 0".encode()]
    assert await changed(things) == {1}


async def test_a_migrator_frozen_past_its_lease_changes_nothing_twice(
    things: Database, own_server: server.Server
) -> None:
    frozen = await start(things, own_server)
    await inside(frozen, 3)
    frozen.send_signal(signal.SIGSTOP)
    assert await finished(await start(things, own_server)) == [f"finished {MANY} 0".encode()]
    frozen.send_signal(signal.SIGCONT)
    assert await finished(frozen) == []
    assert await changed(things) == {1}
    assert (await things[STATES].get("0002_things")).changed == MANY


async def test_an_older_process_goes_on_writing_beside_a_migration(things: Database, own_server: server.Server) -> None:
    """Its updates are kept, each document is changed once, and those that it adds too late are reported."""
    migrator = await start(things, own_server)
    await inside(migrator, 3)
    await things.raw["things"].insert_many(
        [{"_id": -1}, {"_id": -2}]
    )  # before the place that the migration has reached
    finishing = asyncio.ensure_future(finished(migrator))
    updated = 0
    while not finishing.done():
        await things.raw["things"].update_one({"_id": updated % MANY}, {"$inc": {"older": 1}})
        updated += 1
    assert await finishing == [f"finished {MANY} 2".encode()]
    assert sum([each.get("older", 0) async for each in things.raw["things"].find()]) == updated
    assert await things.raw["things"].count_documents({"_id": {"$gte": 0}, "changed": 1}) == MANY


async def test_a_dry_run_counts_and_changes_nothing(things: Database) -> None:
    assert await migrating.plan(things, [MIGRATION]) == [(MIGRATION, MANY)]
    assert await things.raw["things"].count_documents({"changed": {"$exists": True}}) == 0
    assert (await things[META].get("schema")).version == 1


def test_the_versions_of_the_migrations_follow_each_other_up_to_the_schema_s() -> None:
    assert [each.version for each in MIGRATIONS] == list(range(2, SCHEMA_VERSION + 1))
    assert all(each.name.startswith(f"{each.version:04}_") for each in MIGRATIONS)


async def test_projects_of_other_applications_get_their_search_terms(empty_database: Database) -> None:
    texts = [
        {"name": "Łódź"},
        {"name": "プロジェクト計画", "description": None},
        {"name": 5},
        {"name": "x", "searchTerms": ["y"]},
        {"name": "times", "createdAt": [datetime.now(UTC)]},  # no index has two lists of a document
    ]
    await empty_database.raw["projects"].insert_many([{"userId": 1, **text} for text in texts * 300])
    await setup.initialise(empty_database)
    assert await sync.check_version(empty_database)
    assert await empty_database.raw["projects"].count_documents({"searchTerms": "lodz"}) == 300
    assert await empty_database.raw["projects"].count_documents({"searchTerms": "計画"}) == 300
    assert await empty_database.raw["projects"].count_documents({"searchTerms": ["=x", "x"]}) == 300
    assert (await empty_database[STATES].get("0002_search_terms")).changed == 1200


async def test_projects_of_an_earlier_release_are_found_before_and_after_they_get_their_keys(
    empty_database: Database,
) -> None:
    """Also if they are saved, deleted and made while the migration runs."""
    await setup.initialise(empty_database)
    ada = Actor(kind="user", user_id=ObjectId())
    rows = [{"userId": ada.user_id, "name": f"Plan {n}", "searchTerms": search.terms(f"Plan {n}")} for n in range(450)]
    await empty_database.raw["projects"].insert_many(rows)
    await empty_database.raw["meta"].update_one({"_id": "schema"}, {"$set": {"version": 5}})

    async def found(query: str) -> list[str]:
        return [each.name for each in (await projects.page(empty_database, ada, query=query, first=100)).items]

    assert await found("pla 44") == [f"Plan {n}" for n in (449, 448, 447, 446, 445, 444, 443, 442, 441, 440, 44)]
    migrating_ = asyncio.create_task(migrating.migrate(empty_database, MIGRATIONS[-1:]))
    renamed = [row["_id"] for row in rows[40:50]]
    for each in renamed:
        await projects.update(empty_database, ada, each, {"name": "Sketch"})
        assert "Plan 449" in await found("plan")
    (outcome,) = await migrating_
    assert outcome.remaining == 0
    assert len(await found("sket")) == 10
    assert await found("pla 44") == [f"Plan {n}" for n in (449, 448, 447, 446, 445, 444, 443, 442, 441, 440)]
    assert await empty_database.raw["projects"].count_documents({"searchKeys": None}) == 0


async def test_an_unsafe_migration_is_left_to_the_operator(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await empty_database.raw["users"].insert_one({"name": "theirs"})
    monkeypatch.setattr(setup, "MIGRATIONS", [MIGRATION])
    with pytest.raises(sync.SchemaNotReady, match="ximler db migrate"):
        await setup.initialise(empty_database)
    assert (await empty_database[META].get("schema")).version == 1
