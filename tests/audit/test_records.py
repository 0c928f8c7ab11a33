"""The content, redaction and cost of an entry."""

from datetime import timedelta
from typing import Any

import bson
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from tests.database.documents import mixed_values

from ximler.audit import fingerprint, records
from ximler.audit.redaction import REDACTED, cleaned, personal_paths
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.monitoring import round_trips


async def only(database: Database) -> dict[str, Any]:
    found = await database.raw["auditlogs"].find({}).to_list()
    assert len(found) == 1
    return found[0]


async def test_an_entry_has_actor_action_resource_and_origin(database: Database, operator: Actor) -> None:
    person = ObjectId()
    await records.write(
        database, operator, "accounts.user.locked", resource="users", resource_id=person, user_id=person,
        before={"lockedAt": None}, after={"lockedAt": database.clock.now()}, ticket=17,
    )  # fmt: skip
    entry = await only(database)
    assert (entry["action"], entry["resource"], entry["resourceId"]) == ("accounts.user.locked", "users", str(person))
    assert (entry["userId"], entry["ipAddress"], entry["userAgent"]) == (person, "198.51.100.7", "Chrome")
    metadata = entry["metadata"]
    assert metadata["actorId"] == operator.user_id
    assert (metadata["actor"], metadata["via"], metadata["ticket"]) == ("operator", "session", 17)
    assert metadata["before"] == {"lockedAt": None}
    assert abs(entry["createdAt"] - metadata["after"]["lockedAt"]) < timedelta(seconds=1)


async def test_an_entry_adds_one_round_trip_to_a_transaction_and_two_where_there_was_none(
    database: Database, ada: Actor
) -> None:
    async def rename(transaction: Database, *, audited: bool) -> None:
        await transaction.users.patch({"_id": ada.user_id}, {"$set": {"name": "Ada"}})
        if audited:
            await records.write(transaction, ada, "accounts.profile.changed", resource="users", resource_id=ada.user_id)

    async def cost(audited: bool) -> list[Any]:
        with round_trips() as trips:
            await database.transaction(lambda transaction: rename(transaction, audited=audited))
        return trips

    bare, audited = await cost(False), await cost(True)
    assert len(audited) == len(bare) + 1
    with round_trips() as alone:
        await rename(database, audited=False)
    assert len(audited) == len(alone) + 2


async def test_an_aborted_transaction_leaves_no_entry(database: Database, ada: Actor) -> None:
    async def body(transaction: Database) -> None:
        await records.write(transaction, ada, "accounts.profile.changed", resource="users")
        raise Invalid("no")

    with pytest.raises(Invalid):
        await database.transaction(body)
    assert await database.audit_logs.count({}) == 0


async def test_secrets_are_redacted_by_their_name_wherever_they_are(database: Database, ada: Actor) -> None:
    secret = {
        "password": "hunter2hunter2", "newPassword": "hunter2hunter2", "passwordResetToken": "hunter2", "keyHash": "hunter2",
        "recoveryCodes": ["hunter2"], "totp_secret": b"hunter2", "deep": [{"clientSecret": "hunter2"}], "code": "hunter2",
    }  # fmt: skip
    await records.write(
        database,
        ada,
        "accounts.profile.changed",
        resource="users",
        before=secret,
        after={"password": None},
        token="hunter2",
    )
    entry = await only(database)
    assert b"hunter2" not in bson.encode(entry)
    assert entry["metadata"]["before"]["deep"] == [{"clientSecret": REDACTED}]
    assert entry["metadata"]["after"] == {"password": None}


def test_names_that_resemble_secrets_are_kept() -> None:
    kept = {"keyHint": "xim_12", "couponCode": "WELCOME20", "passwordChanged": True, "pinned": 3, "tokenAt": None}
    assert cleaned(kept) == kept


def test_long_texts_are_cut() -> None:
    assert len(cleaned({"a": ["x" * 100_000]})["a"][0]) == 1001


def test_personal_values_are_recognised_by_name_and_lists_as_a_whole() -> None:
    metadata = {"after": {"newEmail": "a@b", "amount": 3, "emailVerified": True, "members": [{"name": "A"}], "ids": [1]},
                "reason": "r", "note": None, "actor": "user", "via": "http", "requestId": "r"}  # fmt: skip
    assert personal_paths(metadata) == ["metadata.after.newEmail", "metadata.after.members", "metadata.reason"]


async def stored(database: Database, actor: Actor, **fields: Any) -> bytes:
    await records.write(database, actor, "accounts.profile.changed", resource="users", **fields)
    raw = await database.raw["auditlogs"].find_one({}, sort=[("_id", -1)])
    return bson.encode(raw)


def examined(raw: bytes, **changes: Any) -> fingerprint.Examined:
    return fingerprint.examine(bson.decode(raw, fingerprint.OPTIONS) | changes)


async def test_the_fingerprint_covers_every_field(database: Database, ada: Actor) -> None:
    raw = await stored(
        database, ada, resource_id="r", before={"email": "a@example.com", "n": 1}, after={"email": "b@example.com"}
    )
    good = examined(raw)
    assert (good.ours, good.problem, good.erased) == (True, None, ())
    whole = bson.decode(raw, fingerprint.OPTIONS)
    for name, value in whole.items():
        if name != "metadata":
            other = (
                ObjectId() if isinstance(value, ObjectId) else value + timedelta(1) if name == "createdAt" else "other"
            )
            assert examined(raw, **{name: other}).problem, name
            without = {key: inner for key, inner in whole.items() if key != name}
            assert fingerprint.examine(bson.decode(bson.encode(without))).problem, name
    assert examined(raw, added=1).problem
    for path, value in (
        ("before.email", "c@example.com"), ("before.n", 2), ("after.email", ""), ("actor", "operator"), ("new", 1),
        ("_audit.v", 2), ("_audit.person.salt", b"x" * 16), ("_audit.hash", bytes(32)), ("_audit.extra", 1),
        ("_audit.person.paths", []), ("_audit.person.paths", ["ipAddress"]),
        ("_audit.person.digest", bytes(32)), ("_audit", None),
    ):  # fmt: skip
        changed = bson.decode(raw, fingerprint.OPTIONS)
        *above, last = path.split(".")
        place = changed["metadata"]
        for name in above:
            place = place[name]
        place[last] = value
        found = fingerprint.examine(changed)
        assert found.problem or not found.ours, path


async def test_the_hash_stays_valid_after_value_and_salt_are_removed(database: Database, ada: Actor) -> None:
    raw = await stored(database, ada, before={"email": "a@example.com"})
    erased = bson.decode(raw, fingerprint.OPTIONS)
    del erased["ipAddress"], erased["userAgent"], erased["metadata"]["before"]["email"]
    half = bson.decode(bson.encode(erased), fingerprint.OPTIONS)
    del erased["metadata"]["_audit"]["person"]["salt"]
    found = fingerprint.examine(erased)
    assert (found.problem, found.erased, found.hash) == (None, ("person",), examined(raw).hash)
    assert fingerprint.examine(half).problem  # the value without its salt


async def test_entries_cannot_be_forged_without_the_secret_key(database: Database, ada: Actor) -> None:
    raw = await stored(database, ada)
    mac = bson.decode(raw)["metadata"]["_audit"]["mac"]
    assert fingerprint.authentic(examined(raw).hash, mac, database.entry_keys)
    assert not fingerprint.authentic(examined(raw).hash, mac, [b"another key"])
    assert fingerprint.authentic(examined(raw).hash, mac, [b"a new key", *database.entry_keys])


@pytest.mark.slow
@given(value=mixed_values.filter(lambda value: isinstance(value, dict)), text=st.text(max_size=20))
def test_stored_entries_are_read_with_the_same_hash(value: Any, text: str) -> None:
    raw = {"_id": ObjectId(), "userAgent": text, "metadata": cleaned({"after": value, "s": text})}
    paths = ["userAgent", *personal_paths(raw["metadata"])]

    def at(path: str) -> Any:
        inner: Any = raw
        for name in path.split("."):
            inner = inner[name]
        return inner

    raw["metadata"]["_audit"] = fingerprint.make(raw, [(path, "person", at(path)) for path in paths], [b"key"])
    stored = bson.encode(raw)
    found = fingerprint.examine(bson.decode(stored, fingerprint.OPTIONS), stored)
    assert found.problem is None
    assert found.hash == raw["metadata"]["_audit"]["hash"]
