"""Operators search across all users' projects."""

import pytest

from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid
from ximler.core.ids import decode_cursor
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.projects import everybodys, projects


async def test_operators_search_everybodys_projects_by_the_text_index(
    database: Database, ada: Actor, bob: Actor
) -> None:
    operator = Actor(kind="operator", via="cli")
    made = [
        await projects.create(database, who, name=name, description=text)
        for who, name, text in ((ada, "Bridges", None), (bob, "Plan", "an old bridge"), (bob, "Tower", "of stone"))
    ]
    gone = await projects.create(database, ada, name="bridge, deleted")
    await projects.delete(database, ada, gone.id)

    with round_trips() as trips:
        page = await everybodys.search(database, operator, "bridge", first=1)
    assert trips == [("find", "projects"), ("insert", "auditlogs")]
    assert [each.name for each in page.items] == ["Plan"]
    rest = await everybodys.search(database, operator, "bridge", after=decode_cursor(page.end_cursor or ""))
    assert [(each.name, each.user_id) for each in rest.items] == [("Bridges", ada.user_id)]
    both = await everybodys.search(database, operator, "stone bridges -old")
    assert [each.id for each in both.items] == [made[2].id, made[0].id]
    entry = await database.raw["auditlogs"].find_one({"action": "projects.projects.searched"}, sort=[("_id", -1)])
    assert entry is not None
    assert entry["metadata"]["seen"] == [bob.user_id, ada.user_id]

    for text in (" ", "x" * 201, "a\0"):
        with pytest.raises(Invalid, match="characters"):
            await everybodys.search(database, operator, text)
    with pytest.raises(Forbidden):
        await everybodys.search(database, ada, "bridge")
