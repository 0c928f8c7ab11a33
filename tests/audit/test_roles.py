"""With database users that have the documented roles, on a real server that enforces them."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure

from ximler import setup
from ximler.audit import pruning, records, roles, seals, search
from ximler.audit.erasure import NotAllowed, erase
from ximler.audit.keys import SealKeys
from ximler.audit.sealing import Sealer
from ximler.audit.verification import verify
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import Database, connect, sync
from ximler.projects import projects
from ximler.schema.user import User

pytestmark = pytest.mark.slow

OPERATOR = Actor(kind="operator", via="cli")


class Users:
    """Connections as a database user with one role each."""

    def __init__(self, admin: Database, uri: str, settings: Settings) -> None:
        self.admin = admin
        self._uri = urlsplit(uri)
        self._settings = settings
        self._open: list[Database] = []

    def uri(self, role: str) -> str:
        place = self._uri.netloc.rpartition("@")[2]
        options = "&".join(part for part in self._uri.query.split("&") if not part.startswith("authSource"))
        return f"mongodb://{role}:pass@{place}/{quote(self.admin.name)}?{options}"

    async def connect(self, role: str, *, maintenance: bool = False) -> Database:
        settings = Settings(
            mongodb_uri=self.uri(role),
            secret_key=self._settings.secret_key,
            audit_mongodb_uri=self.uri(roles.MAINTENANCE) if maintenance else None,
        )
        database = await connect(self.uri(role), settings=settings, name=self.admin.name)
        self._open.append(database)
        return database

    async def close(self) -> None:
        for database in self._open:
            await database.close()


@pytest.fixture
async def users(empty_database: Database, mongodb_admin_uri: str, settings: Settings) -> AsyncIterator[Users]:
    admin = await connect(mongodb_admin_uri, name=empty_database.name)
    await setup.initialise(admin)
    assert await roles.create(admin) == [roles.APPLICATION, roles.MAINTENANCE]
    assert await roles.create(admin) == [roles.APPLICATION, roles.MAINTENANCE]  # and again, brought up to date
    for role in (roles.APPLICATION, roles.MAINTENANCE):
        await admin.raw.command({"createUser": role, "pwd": "pass", "roles": [role]})
    users = Users(admin, mongodb_admin_uri, settings)
    yield users
    await users.close()
    for command in ("dropAllUsersFromDatabase", "dropAllRolesFromDatabase"):
        await admin.raw.command({command: 1})
    await admin.close()


@pytest.fixture
async def ada(users: Users) -> Actor:
    user = await users.admin.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    return Actor(kind="user", via="session", user_id=user.id, address="192.0.2.1")


async def test_the_application_works_and_appends_seals_and_verifies_with_its_own_role(
    users: Users, ada: Actor, keys: SealKeys
) -> None:
    database = await users.connect(roles.APPLICATION)
    assert await sync.check_version(database)
    made = await projects.create(database, ada, name="Bridge")
    await projects.update(database, ada, made.id, {"canvas_data": {"a": 1}})
    await projects.delete(database, ada, made.id)
    sealer = Sealer(database, keys)
    assert await sealer.seal() == 2
    await records.write(database, ada, "accounts.profile.changed", resource="users")
    assert await sealer.seal() == 1
    assert (await verify(database, keys)).sound
    assert len((await search.page(database, OPERATOR)).items) == 3


@pytest.mark.parametrize("collection", ["auditlogs", "auditseals"])
async def test_the_applications_user_can_neither_change_nor_remove_what_it_has_written(
    collection: str, users: Users, ada: Actor, keys: SealKeys
) -> None:
    database = await users.connect(roles.APPLICATION)
    await records.write(database, ada, "accounts.profile.changed", resource="users")
    await Sealer(database, keys).seal()
    raw = database.raw[collection]
    attempts: dict[str, Any] = {
        "update": lambda: raw.update_one({}, {"$set": {"action": "x"}}),
        "replace": lambda: raw.replace_one({}, {"action": "x", "resource": "y"}),
        "delete": lambda: raw.delete_many({}),
        "drop": raw.drop,
        "rename": lambda: raw.rename("elsewhere"),
        "expire": lambda: raw.create_index("createdAt", expireAfterSeconds=0),
        "convert": lambda: database.raw.command(
            {"collMod": collection, "index": {"name": "createdAt_-1", "expireAfterSeconds": 0}}
        ),
        "merge": lambda: database.raw["users"].aggregate([{"$merge": {"into": collection}}]),
        "out": lambda: database.raw["users"].aggregate([{"$out": collection}]),
        "drop database": lambda: database.client.drop_database(database.name),
    }
    before = await raw.find({}).to_list()
    for name, attempt in attempts.items():
        with pytest.raises(OperationFailure) as refused:
            await attempt()
        assert refused.value.code == 13, name
    assert await raw.find({}).to_list() == before


async def test_erasing_and_pruning_take_the_maintenance_role(users: Users, ada: Actor, keys: SealKeys) -> None:
    assert ada.user_id is not None
    alone = await users.connect(roles.APPLICATION)
    await records.write(alone, ada, "accounts.profile.changed", resource="users")
    await records.write(alone, ada, "accounts.avatar.changed", resource="users")
    await Sealer(alone, keys).seal()
    await Sealer(alone, keys).seal()
    with pytest.raises(NotAllowed, match="XIMLER_AUDIT_MONGODB_URI"):
        await erase(alone, ada.user_id)
    database = await users.connect(roles.APPLICATION, maintenance=True)
    assert await erase(database, ada.user_id) == 2
    await Sealer(database, keys).seal()
    report = await verify(database, keys)
    assert report.sound, report.problems
    assert report.erased == 2
    now = database.clock.now()
    with pytest.raises(NotAllowed):
        await pruning.prune(alone, keys, SYSTEM, before=now)
    assert await pruning.prune(database, keys, SYSTEM, before=now) == 2
    assert (await verify(database, keys)).sound
    end = await seals.last(database)
    assert end is not None
    assert end.kind == "pruned"


async def test_the_maintenance_role_reads_and_writes_nothing_else(users: Users) -> None:
    database = await users.connect(roles.MAINTENANCE)
    for attempt in (
        lambda: database.raw["users"].find_one({}),
        lambda: database.raw["auditlogs"].insert_one({"_id": ObjectId()}),
        lambda: database.raw["auditseals"].update_one({}, {"$set": {"count": 0}}),
    ):
        with pytest.raises(OperationFailure) as refused:
            await attempt()
        assert refused.value.code == 13
