"""The profile: partial changes, stored as typed, audited."""

import pytest
from tests.accounts.authenticator import Person

from ximler.accounts import profile
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.monitoring import round_trips


async def test_another_name(person: Person, database: Database) -> None:
    with round_trips() as trips:
        changed = await profile.rename(database, person.actor(), person.user, name="  Ada Lovelace ")
    assert changed.name == "Ada Lovelace"
    assert len(trips) == 4  # what there was, the change, its entry in the log, the commit
    (entry,) = await database.audit_logs.find({"action": "accounts.profile.changed"})
    assert (entry.user_id, entry.resource_id) == (person.user.id, str(person.user.id))


async def test_unchanged_values_are_not_written(person: Person, database: Database) -> None:
    before = await database.raw["users"].find_one({})
    with round_trips() as trips:
        await profile.rename(database, person.actor(), person.user, name="Ada")
        await profile.change_notifications(database, person.actor(), person.user, {"email": {"billing_alerts": True}})
        await profile.change_notifications(database, person.actor(), person.user, {})
    assert {verb for verb, _ in trips} == {"find", "commitTransaction"}
    assert await database.raw["users"].find_one({}) == before
    assert await database.audit_logs.find({"action": {"$regex": "profile|notifications"}}) == []


async def test_a_change_of_a_moment_ago_is_compared_with_the_database(person: Person, database: Database) -> None:
    """The user that came with the request was read before."""
    await profile.rename(database, person.actor(), person.user, name="Ada Lovelace")
    assert (await profile.rename(database, person.actor(), person.user, name="Ada")).name == "Ada"
    entries = await database.audit_logs.find({"action": "accounts.profile.changed"})
    assert len(entries) == 2


@pytest.mark.parametrize("name", ["", " ", "a\r\nBcc: b@example.com", "a\0", "\u202ea", "x" * 101, "\ud800"])
async def test_an_invalid_name_is_rejected(person: Person, database: Database, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        await profile.rename(database, person.actor(), person.user, name=name)
    assert refused.value.fields.keys() == {"name"}
