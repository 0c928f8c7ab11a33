"""People leave the log, and it still can be verified;
without a record of it, that they are gone is an alarm."""

import bson
from bson import ObjectId
from tests.audit.conftest import Written

from ximler.audit import erasure, records
from ximler.audit.actions import Action
from ximler.audit.erasure import erase
from ximler.audit.keys import SealKeys
from ximler.audit.sealing import Sealer
from ximler.audit.verification import verify
from ximler.core.actor import Actor
from ximler.database import Database


async def everything(database: Database) -> bytes:
    return b"".join([bson.encode(raw) async for raw in database.raw["auditlogs"].find({})])


async def test_an_erased_person_is_removed_from_the_log_and_the_rest_still_verifies(
    database: Database, keys: SealKeys, sealer: Sealer, ada: Actor, operator: Actor, write: Written
) -> None:
    assert ada.user_id is not None
    await write(3)
    await write(2, actor=operator)
    await records.write(database, operator, "accounts.user.locked", resource="users", user_id=ada.user_id, reason="Ada said no",
                        after={"amount": 4711})  # fmt: skip
    await records.write(
        database, ada, "projects.project.deleted", resource="projects", user_id=ObjectId(), note="ada's note"
    )
    await sealer.seal()
    assert await erase(database, ada.user_id) == 5
    left = await everything(database)
    for personal in (b"192.0.2.1", b"Firefox", b"Ada said no"):
        assert personal not in left
    assert left.count(b"@example.com") == 4  # the operator's own entries
    assert b"198.51.100.7" in left  # who locked it
    assert b"ada's note" in left  # about somebody else
    locked = await database.raw["auditlogs"].find_one({"action": "accounts.user.locked"})
    assert locked is not None
    assert locked["metadata"]["after"] == {"amount": 4711}
    assert locked["userId"] == ada.user_id
    for _ in range(2):
        report = await verify(database, keys)
        assert report.sound, report.problems
        assert report.erased == 5
        await sealer.seal()
    assert await erase(database, ada.user_id) == 0


async def test_personal_data_removed_without_a_recorded_erasure_is_reported(
    database: Database, keys: SealKeys, sealer: Sealer, ada: Actor, write: Written
) -> None:
    (oid,) = await write(1)
    await write(1)
    await sealer.seal()
    await erasure._erase(database, {"_id": oid}, "person")
    report = await verify(database, keys)
    assert report.counts == {"altered": 1}
    assert report.problems[0].entry == str(oid)


async def test_an_erasure_of_another_person_or_a_forged_one_is_not_accepted(
    database: Database, keys: SealKeys, sealer: Sealer, ada: Actor, write: Written
) -> None:
    await write(1)
    await sealer.seal()
    await erase(database, ObjectId())
    await erasure._erase(database, {"userId": ada.user_id}, "person")
    assert (await verify(database, keys)).counts == {"altered": 1}
    genuine, database.entry_keys = database.entry_keys, (b"an attacker's",)
    await erase(database, ada.require_user())
    database.entry_keys = genuine
    assert (await verify(database, keys)).counts == {"altered": 1}
    await sealer.seal()
    assert (await verify(database, keys)).counts == {"altered": 1, "inserted": 1}


async def test_a_new_value_in_place_of_an_erased_one_is_found(
    database: Database, keys: SealKeys, sealer: Sealer, ada: Actor, write: Written
) -> None:
    (oid,) = await write(1)
    await sealer.seal()
    await erase(database, ada.require_user())
    await database.raw["auditlogs"].update_one({"_id": oid}, {"$set": {"ipAddress": "203.0.113.9"}})
    assert (await verify(database, keys)).problems[0].entry == str(oid)


async def test_an_erasure_that_was_interrupted_is_no_alarm_and_can_be_finished(
    database: Database, keys: SealKeys, sealer: Sealer, ada: Actor, write: Written
) -> None:
    written = await write(4)
    await sealer.seal()
    await records.write(database, ada, Action.PERSON_ERASED, resource="users", resource_id=ada.user_id)
    await erasure._erase(database, {"_id": {"$in": written[:2]}}, "person")
    assert (await verify(database, keys)).sound
    assert await erase(database, ada.require_user()) >= 2
    assert b"new3@example.com" not in await everything(database)
