"""The database held against the map: made once by however many start at once, reported where it differs, and
changed only when asked.
"""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from bson import ObjectId
from pymongo.errors import DuplicateKeyError, WriteError

from ximler import setup
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.billing.seeds import SEEDS
from ximler.core.actor import Actor
from ximler.database import Database, connect, seeding, sync
from ximler.database.sync import Difference, SchemaTooNew
from ximler.database.validators import validator
from ximler.schema import CATALOGUE, SPECIFIED
from ximler.schema.meta import META, SCHEMA_VERSION
from ximler.schema.plan import PLANS
from ximler.schema.user import USERS

pytestmark = pytest.mark.slow

NAMES = {collection.name for collection in CATALOGUE}


async def collections_of(database: Database) -> dict[str, dict[str, Any]]:
    return {found["name"]: found["options"] async for found in await database.raw.list_collections()}


async def indexes_of(database: Database, name: str) -> dict[str, dict[str, Any]]:
    return {index["name"]: index async for index in await database.raw[name].list_indexes()}


def brief(differences: list[Difference]) -> list[tuple[str, str, str, str]]:
    return [(d.collection, d.what, d.name, d.state) for d in differences]


@pytest.fixture(scope="module")
async def _made(mongodb_uri: str) -> AsyncIterator[Database]:
    database = await connect(mongodb_uri, name=f"ximler_test_{os.getpid()}_{secrets.token_hex(3)}")
    assert await setup.initialise(database) == []
    yield database
    await database.client.drop_database(database.name)
    await database.close()


@pytest.fixture
async def made(_made: Database) -> AsyncIterator[Database]:
    """Initialised, and the test's own to change;
    put right again after it, since making one takes a second."""
    stamp = await _made.raw.meta.find_one({"_id": "schema"})
    seeded = {name: await _made.raw[name].find({}).to_list() for name in ("plans", "coupons")}
    yield _made
    for name in await _made.raw.list_collection_names():
        await (_made.raw.drop_collection(name) if name not in NAMES else _made.raw[name].delete_many({}))
    await _made.raw.meta.insert_one(stamp)
    for name, documents in seeded.items():
        await _made.raw[name].insert_many(documents)
    for difference in await setup.initialise(_made, repair=True):
        await _made.raw[difference.collection].drop_index(difference.name)
    assert await setup.initialise(_made, repair=True) == []


# Making


async def test_on_an_empty_database_everything_is_made(empty_database: Database) -> None:
    assert not await sync.check_version(empty_database)
    progress: list[str] = []
    assert await setup.initialise(empty_database, progress=progress.append) == []
    assert sorted(progress) == sorted(NAMES)
    collections = await collections_of(empty_database)
    assert collections.keys() == NAMES
    for collection in CATALOGUE:
        options = collections[collection.name]
        assert options["validator"] == validator(collection)
        assert (options["validationLevel"], options["validationAction"]) == ("moderate", "error")
        indexes = await indexes_of(empty_database, collection.name)
        assert indexes.keys() == {"_id_"} | {index.name for index in collection.indexes}
    stamp = await empty_database[META].get("schema")
    assert (stamp.version, stamp.created_here) == (SCHEMA_VERSION, True)
    assert stamp.fingerprint
    assert await empty_database.plans.count({}) == 3
    assert await empty_database.coupons.count({}) == 2
    assert await sync.check_version(empty_database)


async def test_unique_and_ttl_indexes_work(made: Database) -> None:
    await made.raw.users.insert_one(user := {"name": "a", "email": "a", "password": "a"})
    with pytest.raises(DuplicateKeyError):
        await made.raw.users.insert_one(user | {"_id": ObjectId()})
    assert (await indexes_of(made, "sessions"))["expiresAt_1"]["expireAfterSeconds"] == 0


async def test_repeating_it_changes_nothing(made: Database) -> None:
    before = [
        await collections_of(made),
        [await indexes_of(made, name) for name in sorted(NAMES)],
        [await made.raw[name].find({}).to_list() for name in sorted(NAMES - {"meta"})],
    ]
    stamp = await made[META].get("schema")
    assert await setup.initialise(made) == []
    assert [
        await collections_of(made),
        [await indexes_of(made, name) for name in sorted(NAMES)],
        [await made.raw[name].find({}).to_list() for name in sorted(NAMES - {"meta"})],
    ] == before
    again = await made[META].get("schema")
    assert (again.created_at, again.created_here, again.version) == (stamp.created_at, True, SCHEMA_VERSION)


async def test_seeds_that_an_operator_removed_do_not_come_back_with_the_next_start(made: Database) -> None:
    await made.coupons.delete({"code": "STUDENT50"})
    await made.plans.patch({"id": "pro"}, {"$set": {"price": 35}})
    await setup.initialise(made)
    assert [coupon.code for coupon in await made.coupons.find({})] == ["WELCOME20"]
    assert (await made.plans.get({"id": "pro"})).price == 35


async def test_a_deleted_plan_stays_deleted_and_is_not_a_difference(made: Database) -> None:
    await made.plans.delete({"id": "enterprise"})
    assert await setup.initialise(made) == []
    assert await setup.status(made) == []
    assert await made.plans.count({}) == 2
    assert await seeding.insert(made, SEEDS) == {"plans": ["enterprise"], "coupons": []}, "unless asked for"


async def test_seeds_that_were_never_inserted_are_reported_and_follow(made: Database) -> None:
    await made.plans.delete_many({})
    await made[META].patch({"_id": "schema"}, {"$set": {"seeded": ["coupons:WELCOME20", "coupons:STUDENT50"]}})
    missing = [("plans", "seed", name, "missing") for name in ("free", "pro", "enterprise")]
    differences = await setup.status(made)
    assert brief(differences) == missing
    assert {found.remedy for found in differences} == {"ximler db init"}
    assert await setup.initialise(made) == []
    assert await made.plans.count({}) == 3


async def test_a_command_before_the_first_start_does_not_make_it_another_application_s(
    empty_database: Database,
) -> None:
    await records.write(empty_database, Actor(kind="operator"), Action.USERS_LISTED, resource="users")
    assert await setup.initialise(empty_database) == []
    assert (await empty_database[META].get("schema")).created_here
    assert await empty_database.plans.count({}) == 3


async def test_another_application_s_audit_log_makes_it_theirs(empty_database: Database) -> None:
    await empty_database.raw.auditlogs.insert_one({"action": "x"})
    await setup.initialise(empty_database)
    assert not (await empty_database[META].get("schema")).created_here
    assert brief(await setup.status(empty_database)) == [
        ("plans", "seed", name, "missing") for name in ("free", "pro", "enterprise")
    ]
    await seeding.insert(empty_database, SEEDS)
    assert await setup.status(empty_database) == []


async def test_a_run_that_was_interrupted_is_finished_by_the_next(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(seeding, "insert", killed)
        with pytest.raises(KeyboardInterrupt):
            await setup.initialise(empty_database)
    assert not await sync.check_version(empty_database)
    assert await setup.initialise(empty_database) == []
    assert await empty_database.plans.count({}) == 3
    assert (await empty_database[META].get("schema")).created_here
    for options in (await collections_of(empty_database)).values():
        assert options["validationAction"] == "error"


RACER = """
import asyncio, os, sys
from ximler import setup
from ximler.database import connect

async def main():
    database = await connect(os.environ["URI"], name=os.environ["NAME"])
    print("ready", flush=True)
    sys.stdin.readline()
    print(await setup.initialise(database))
    await database.close()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_five_processes_that_start_at_once_make_one_database(empty_database: Database, mongodb_uri: str) -> None:
    environment = {**os.environ, "URI": mongodb_uri, "NAME": empty_database.name}
    pipe = asyncio.subprocess.PIPE
    racers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", RACER, env=environment, stdin=pipe, stdout=pipe)
        for _ in range(5)
    ]
    for racer in racers:
        assert racer.stdout
        while (line := await racer.stdout.readline()) != b"ready\n":
            assert line, "the process ended"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(b"go\n")
    for racer in racers:
        said, _ = await asyncio.wait_for(racer.communicate(), 60)
        assert said.splitlines()[-1] == b"[]"
        assert racer.returncode == 0
    assert await setup.status(empty_database) == []
    assert (await empty_database[META].get("schema")).created_here, "one of them thought it was somebody else's"
    collections = await collections_of(empty_database)
    assert collections.keys() == NAMES
    assert {options["validationAction"] for options in collections.values()} == {"error"}
    assert sorted(plan.id for plan in await empty_database.plans.find({})) == ["enterprise", "free", "pro"]
    assert await empty_database.coupons.count({}) == 2


async def test_concurrent_starts_in_one_process_agree_too(empty_database: Database) -> None:
    results = await asyncio.gather(*(setup.initialise(empty_database) for _ in range(8)))
    assert results == [[]] * 8
    assert (await empty_database[META].get("schema")).created_here


async def test_a_validator_that_only_warns_is_reported_and_refuses_again(made: Database) -> None:
    for name, change in (("users", {"validationAction": "warn"}), ("sessions", {"validationLevel": "off"})):
        await made.raw.command("collMod", name, **change)
        assert brief(await setup.status(made)) == [(name, "validator", name, "changed")]
        assert await setup.initialise(made) == []
        assert (await collections_of(made))[name]["validationAction"] == "error"


# Another application's database


async def test_on_a_database_that_others_made_documents_are_only_warned_about(empty_database: Database) -> None:
    odd = {"_id": ObjectId(), "name": 5}
    await empty_database.raw.users.insert_one(odd)
    assert await setup.initialise(empty_database) == []
    collections = await collections_of(empty_database)
    for collection in SPECIFIED:
        assert collections[collection.name]["validationAction"] == "warn"
    for collection in CATALOGUE[len(SPECIFIED) :]:
        assert collections[collection.name]["validationAction"] == "error", "ours alone"
    assert not (await empty_database[META].get("schema")).created_here
    await empty_database.raw.users.insert_one({"name": 6, "email": "x"})
    assert await empty_database.raw.users.find_one({"_id": odd["_id"]}) == odd
    await setup.initialise(empty_database)
    assert (await collections_of(empty_database))["users"]["validationAction"] == "warn"


async def test_another_application_s_validator_stays_until_a_repair_is_asked_for(empty_database: Database) -> None:
    theirs = {"$jsonSchema": {"required": ["name"]}}
    await empty_database.raw.create_collection("users", validator=theirs, validationAction="error")
    assert brief(await setup.initialise(empty_database)) == [("users", "validator", "users", "changed")]
    assert (await collections_of(empty_database))["users"]["validator"] == theirs
    assert brief(await sync.status(empty_database)) == [("users", "validator", "users", "changed")]
    assert await setup.initialise(empty_database, repair=True) == []
    options = (await collections_of(empty_database))["users"]
    assert options["validator"] == validator(USERS)
    assert options["validationAction"] == "warn"


async def test_duplicates_keep_one_index_from_being_made_and_no_other(empty_database: Database) -> None:
    await empty_database.raw.users.insert_many([{"name": "a", "email": "same"}, {"name": "b", "email": "same"}])
    with structlog.testing.capture_logs() as logs:
        differences = await setup.initialise(empty_database)
    assert brief(differences) == [("users", "index", "email_1", "missing")]
    (line,) = (log for log in logs if log["event"] == "index not created")
    assert (line["collection"], line["index"]) == ("users", "email_1")
    assert "E11000" in line["reason"]
    await empty_database.raw.users.delete_one({"name": "b"})
    assert await setup.initialise(empty_database) == []


async def test_an_index_under_another_name_or_another_text_index_is_reported_and_left(empty_database: Database) -> None:
    await empty_database.raw.payments.create_index([("userId", 1)], name="by_user")
    await empty_database.raw.projects.create_index([("canvasData", "text")], name="everything")
    differences = brief(await setup.initialise(empty_database))
    assert differences == [
        ("payments", "index", "userId_1", "missing"),
        ("payments", "index", "by_user", "extra"),
        ("projects", "index", "name_text_description_text", "missing"),
        ("projects", "index", "everything", "extra"),
    ]
    assert await setup.initialise(empty_database, repair=True) != [], "an extra index is nobody's to drop"
    assert "by_user" in await indexes_of(empty_database, "payments")


# Differences


async def test_a_database_that_is_not_there_lacks_every_collection(empty_database: Database) -> None:
    differences = await setup.status(empty_database)
    assert brief(differences) == [(c.name, "collection", c.name, "missing") for c in CATALOGUE]
    assert await collections_of(empty_database) == {}, "looking makes nothing"


async def test_every_difference_is_found_and_only_missing_parts_are_created(made: Database) -> None:
    await made.raw.users.drop_index("deletedAt_1")
    await made.raw.users.create_index([("avatar", 1)])
    await made.raw.drop_collection("notifications")
    await made.raw.coupons.drop_index("code_1")
    await made.raw.coupons.create_index([("code", 1)])  # no longer unique
    await made.raw.payments.drop_index("status_1")
    await made.raw.payments.create_index([("status", -1)], name="status_1")
    await made.raw.usage.drop_index("resourceType_1")
    await made.raw.usage.create_index([("resourceType", "hashed")], name="resourceType_1")
    await made.raw.subscriptions.drop_index("endDate_1")
    await made.raw.subscriptions.create_index([("endDate", 1)], expireAfterSeconds=60)
    await made.raw.subscriptions.drop_index("status_1")
    await made.raw.subscriptions.create_index([("status", 1)], partialFilterExpression={"status": "ACTIVE"})
    await made.raw.apikeys.drop_index("keyHash_1")
    await made.raw.apikeys.create_index([("keyHash", 1)], sparse=True)
    await made.raw.apikeys.drop_index("userId_1")
    await made.raw.apikeys.create_index([("userId", 1)], collation={"locale": "en"})
    await made.raw.command("collMod", "auditlogs", index={"name": "action_1", "hidden": True})
    await made.raw.projects.drop_index("name_text_description_text")
    await made.raw.projects.create_index([("name", "text")], name="name_text_description_text")
    await made.raw.command("collMod", "sessions", index={"name": "expiresAt_1", "expireAfterSeconds": 9})
    found = brief(await setup.status(made))
    assert found == [
        ("users", "index", "deletedAt_1", "missing"),
        ("users", "index", "avatar_1", "extra"),
        ("subscriptions", "index", "status_1", "changed"),
        ("subscriptions", "index", "endDate_1", "changed"),
        ("payments", "index", "status_1", "changed"),
        ("usage", "index", "resourceType_1", "changed"),
        ("projects", "index", "name_text_description_text", "changed"),
        ("apikeys", "index", "userId_1", "changed"),
        ("apikeys", "index", "keyHash_1", "changed"),
        ("notifications", "collection", "notifications", "missing"),
        ("coupons", "index", "code_1", "changed"),
        ("auditlogs", "index", "action_1", "changed"),
        ("sessions", "index", "expiresAt_1", "changed"),
    ]
    changed = [difference for difference in found if difference[3] in ("changed", "extra")]
    assert brief(await setup.initialise(made)) == changed, "nothing is rebuilt unless asked"
    extra = [difference for difference in changed if difference[3] == "extra"]
    assert brief(await setup.initialise(made, repair=True)) == extra
    assert "avatar_1" in await indexes_of(made, "users")


async def test_a_remedy_is_named_for_every_difference(made: Database) -> None:
    await made.raw.users.drop_index("deletedAt_1")
    await made.raw.users.create_index([("avatar", 1)])
    await made.raw.drop_collection("notifications")
    await made.raw.command("collMod", "plans", validator={})
    await made.raw.command("collMod", "coupons", validator={"code": {"$exists": True}})
    await made.raw.usages.insert_one({})
    remedies = {(d.collection, d.state): d.remedy for d in await setup.status(made)}
    assert remedies == {
        ("users", "missing"): "ximler db init",
        ("users", "extra"): "left alone; db.users.dropIndex('avatar_1') removes it",
        ("plans", "missing"): "ximler db init",
        ("coupons", "changed"): "ximler db init --repair replaces it",
        ("notifications", "missing"): "ximler db init",
        ("usages", "extra"): "a Mongoose model without a collection name wrote here: ximler db adopt",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"validator": {}},
        {"validator": {"$jsonSchema": {"required": ["x"]}}},
        {"validationLevel": "off"},
    ],
)
async def test_a_validator_that_was_changed_is_found_and_ours_is_put_back(
    made: Database, change: dict[str, Any]
) -> None:
    await made.raw.command("collMod", "plans", **change)
    (difference,) = await setup.status(made)
    assert (difference.collection, difference.what) == ("plans", "validator")
    assert await setup.initialise(made) == []
    assert (await collections_of(made))["plans"]["validator"] == validator(PLANS)
    with pytest.raises(WriteError):
        await made.raw.plans.insert_one({})


async def test_a_repair_that_cannot_be_finished_leaves_the_old_index(made: Database) -> None:
    """The unique index was replaced by a plain one, and two documents share an address."""
    await made.raw.users.drop_index("email_1")
    await made.raw.users.create_index([("email", 1)])
    await made.raw.users.insert_many([{"name": n, "email": "same", "password": "x"} for n in ("a", "b")])
    differences = await setup.initialise(made, repair=True)
    assert brief(differences) == [("users", "index", "email_1", "changed")]
    assert "email_1" in await indexes_of(made, "users")


async def test_directions_that_are_stored_as_doubles_are_the_same(made: Database) -> None:
    """As mongosh writes them."""
    await made.raw.users.drop_index("deletedAt_1")
    await made.raw.command("createIndexes", "users", indexes=[{"key": {"deletedAt": 1.0}, "name": "deletedAt_1"}])
    assert await setup.status(made) == []


# Versions


async def test_a_database_of_a_newer_ximler_is_refused_before_anything_is_changed(made: Database) -> None:
    await made.raw.meta.update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION + 1}})
    await made.raw.users.drop_index("deletedAt_1")
    for attempt in (sync.check_version, setup.initialise):
        with pytest.raises(SchemaTooNew) as caught:
            await attempt(made)
        assert made.name in caught.value.message
        assert f"version {SCHEMA_VERSION + 1}; this Ximler knows {SCHEMA_VERSION}" in caught.value.message
        assert "pip install -U ximler" in caught.value.message
    assert "deletedAt_1" not in await indexes_of(made, "users")


async def test_a_database_of_an_older_ximler_or_of_another_map_is_brought_up_to_date(made: Database) -> None:
    for change in ({"version": SCHEMA_VERSION - 1}, {"fingerprint": "of another map"}):
        await made.raw.meta.update_one({"_id": "schema"}, {"$set": change})
        await made.raw.users.drop_index("deletedAt_1")
        assert not await sync.check_version(made)
        assert await setup.initialise(made) == []
        assert await sync.check_version(made)


async def test_an_older_release_leaves_the_validators_of_a_newer_one(made: Database) -> None:
    newer = {"$jsonSchema": {"required": ["name"], "properties": {"new": {"bsonType": "string"}}}}
    await made.raw.command("collMod", "users", validator=newer)
    await made.raw.meta.update_one({"_id": "schema"}, {"$set": {"release": "99.0.0", "fingerprint": "newer"}})
    assert await sync.check_version(made)
    await setup.initialise(made)
    assert (await collections_of(made))["users"]["validator"] == newer
    stamp = await made[META].get("schema")
    assert (stamp.release, stamp.fingerprint) == ("99.0.0", "newer")
    await made.raw.meta.update_one({"_id": "schema"}, {"$set": {"release": "0.0.1"}})
    assert await setup.initialise(made) == []
    assert (await collections_of(made))["users"]["validator"] == validator(USERS)


async def test_the_stamp_does_not_depend_on_when_or_where_it_is_made() -> None:
    script = "from ximler.database.sync import _fingerprint; print(_fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, env=environment, stdout=pipe)
    said, _ = await other.communicate()
    assert said.decode().strip() == sync._fingerprint()


# Adopting documents that Mongoose wrote to `usages`


async def test_adopting_moves_documents_keeps_existing_ones_and_is_idempotent(made: Database) -> None:
    shared = ObjectId()
    theirs = [{"_id": ObjectId(), "amount": n} for n in range(5)]
    await made.raw.usage.insert_one({"_id": shared, "amount": 99}, bypass_document_validation=True)
    await made.raw.usages.insert_many([*theirs, {"_id": shared, "amount": 1}])
    assert brief(await setup.status(made)) == [("usages", "documents", "usages", "extra")]
    assert await sync.adopt(made) == 6
    assert await made.raw.usage.count_documents({}) == 6
    assert (await made.raw.usage.find_one({"_id": shared})) == {"_id": shared, "amount": 99}
    assert await setup.status(made) == []
    assert await sync.adopt(made) == 0


async def test_an_adoption_that_was_interrupted_is_reported_and_finished(made: Database) -> None:
    await made.raw.usages_adopting_1.insert_many([{"_id": 1}, {"_id": 2}])
    await made.raw.usage.insert_one({"_id": 1}, bypass_document_validation=True)  # it had come that far
    await made.raw.usages.insert_one({"_id": 3})
    assert {difference.collection for difference in await setup.status(made)} == {"usages", "usages_adopting_1"}
    assert await sync.adopt(made) == 3
    assert await made.raw.usage.count_documents({}) == 3
    assert await setup.status(made) == []


async def test_nothing_is_lost_when_several_adopt_while_others_write(made: Database, mongodb_uri: str) -> None:
    stop = asyncio.Event()
    written: list[ObjectId] = []

    async def mongoose() -> None:
        while not stop.is_set():
            written.append((await made.raw.usages.insert_one({"amount": 1})).inserted_id)

    other = await connect(mongodb_uri, name=made.name)
    writer = asyncio.create_task(mongoose())
    for _ in range(3):
        await asyncio.gather(sync.adopt(made), sync.adopt(other))
    stop.set()
    await writer
    await other.close()
    await sync.adopt(made)
    kept = {raw["_id"] async for raw in made.raw.usage.find({}, {"_id": 1})}
    assert kept == set(written)


async def test_an_empty_usages_is_no_difference(made: Database) -> None:
    await made.raw.create_collection("usages")
    assert await setup.status(made) == []
