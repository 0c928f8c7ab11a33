"""Search by operators, and the security history of users without data of other people."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from tests.audit.conftest import Written

from ximler.audit import export, records, search
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid, Unauthenticated
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.monitoring import round_trips


async def test_entries_are_found_by_user_action_resource_and_time(
    database: Database, operator: Actor, ada: Actor, write: Written
) -> None:
    now = database.clock.now()
    database.clock.offset_ms = -3_600_000
    (old,) = await write()
    database.clock.offset_ms = 0
    (new,) = await write(resource="projects", resource_id="p1")
    (hers,) = await write(actor=operator)
    assert ada.user_id is not None

    async def found(**given: Any) -> list[ObjectId]:
        page = await search.page(database, operator, **given)
        return [entry.id for entry in page.items if entry.action != Action.LOG_READ]

    assert await found() == [hers, new, old]
    assert await found(user_id=ada.user_id) == [new, old]
    assert await found(action="accounts.email.changed") == [hers, new, old]
    assert await found(action="accounts.email") == []
    assert await found(resource="projects", resource_id="p1") == [new]
    assert await found(since=now - timedelta(minutes=1)) == [hers, new]
    assert await found(user_id=ada.user_id, until=now - timedelta(minutes=1)) == [old]
    for wrong in ({"resource_id": "x"}, {"since": now, "until": now}, {"first": 0}):
        with pytest.raises(Invalid):
            await search.page(database, operator, **wrong)


async def test_pages_go_on_where_the_last_ended(database: Database, operator: Actor, write: Written) -> None:
    written = await write(7)
    seen: list[ObjectId] = []
    after = None
    while True:
        with round_trips() as trips:
            page = await search.page(database, operator, action="accounts.email.changed", first=3, after=after)
        assert len(trips) == 1
        seen += [entry.id for entry in page.items]
        if not page.has_next:
            break
        assert page.end_cursor is not None
        after = decode_cursor(page.end_cursor)
    assert seen == written[::-1]


@pytest.mark.slow
async def test_that_an_operator_looked_at_somebodys_entries_is_in_the_log(
    database: Database, operator: Actor, ada: Actor, write: Written
) -> None:
    await write(2)
    await search.page(database, operator, user_id=ada.user_id, action="accounts.email.changed")
    found = await database.audit_logs.find({"action": Action.LOG_READ})
    assert [(entry.user_id, entry.metadata["actorId"]) for entry in found] == [(ada.user_id, operator.user_id)]


async def test_only_operators_search_and_export(database: Database, ada: Actor) -> None:
    for actor, error in ((ada, Forbidden), (Actor(), Unauthenticated)):
        with pytest.raises(error):
            await search.page(database, actor)
        with pytest.raises(error):
            await anext(export.lines(database, actor, {}))


async def test_users_see_their_own_history_without_data_of_other_people(
    database: Database, operator: Actor, ada: Actor, write: Written
) -> None:
    await write(1)
    await write(1, actor=operator)
    await records.write(
        database, operator, "accounts.user.locked", resource="users", user_id=ada.user_id, reason="secret reason"
    )
    await search.page(database, operator, user_id=ada.user_id)
    page = await search.history(database, ada)
    assert [(e.action, e.ip_address, e.user_agent, e.metadata) for e in page.items] == [
        ("accounts.user.locked", None, None, {"actor": "operator", "via": "session"}),
        ("accounts.email.changed", "192.0.2.1", "Firefox", {"actor": "user", "via": "session"}),
    ]
    with pytest.raises(Unauthenticated):
        await search.history(database, Actor())


async def test_ndjson_has_all_fields_and_csv_the_readable_ones(
    database: Database, operator: Actor, write: Written
) -> None:
    written = await write(3, note='=HYPERLINK("http://evil.example")')
    odd = {"_id": "odd", "action": "=1+1", "createdAt": datetime(2020, 1, 1, tzinfo=UTC), "metadata": [1, {"x": b"\0"}]}
    await database.raw["auditlogs"].insert_one({**odd, "resource": "r"}, bypass_document_validation=True)
    where = search.condition(until=database.clock.now() + timedelta(seconds=1))
    text = "".join([part async for part in export.lines(database, operator, where, batch=2)])
    entries = [json.loads(line) for line in text.splitlines()]
    assert [entry["id"] for entry in entries][:4] == ["odd", *map(str, written)]
    assert entries[1]["metadata"]["before"] == {"email": "old0@example.com"}
    assert len(entries[1]["metadata"]["_audit"]["hash"]) == 44
    assert entries[0]["createdAt"] == "2020-01-01T00:00:00.000Z"
    text = "".join([part async for part in export.lines(database, operator, where, form="csv")])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(export.COLUMNS)
    assert rows[0]["action"] == "'=1+1"
    assert [row["id"] for row in rows][1:4] == [str(oid) for oid in written]
    assert json.loads(rows[1]["details"])["note"].startswith("=HYPERLINK")
    assert await database.audit_logs.count({"action": Action.LOG_READ}) == 2
