"""Assets after crashes between any two commands, and after random histories: the gauge is what is there."""

import random
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.accounts.test_avatars import picture
from tests.billing.killing import Killer
from tests.projects.test_assets import check, later, project, upload

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import assets, assets_previews, assets_storage, duplicates, projects, trash
from ximler.schema.asset import ASSETS

CONTENTS = [picture(size=(40, 30)), b"x" * 300_000, b"", b"y"]  # a picture, two chunks, none, one


async def _sweep(database: Database) -> None:
    for _ in range(2):  # what a killed process may still write is removed a second time
        later(database, minutes=11)
        await assets_storage.sweep(database=database)


@pytest.mark.slow
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.soak)])
async def test_after_a_crash_before_any_command_the_sweep_leaves_what_is_counted(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    killer = Killer(monkeypatch)
    first, second = await project(database, ada), await project(database, ada)

    async def newest(where: ObjectId) -> assets.Asset:
        return (await assets.page(database, ada, where)).items[0]

    async def preview() -> object:
        return await assets_previews.get(database, await newest(first), 256)

    async def delete(where: ObjectId) -> object:
        return await assets.delete(database, ada, where, (await newest(where)).id)

    async def purge() -> None:
        if await database.projects.count({"_id": second}):
            await projects.delete(database, ada, second)
        await trash.purge(database, ada, second)

    acts: dict[str, Any] = {
        "upload": lambda: upload(database, ada, first, CONTENTS[1], declared=False),
        "upload a picture": lambda: upload(database, ada, first, CONTENTS[0]),
        "make a preview": preview,
        "upload equal content": lambda: upload(database, ada, second, CONTENTS[0]),
        "delete one of two": lambda: delete(first),
        "delete the last": lambda: delete(first),
        "upload again": lambda: upload(database, ada, second, CONTENTS[1]),
        "purge": purge,
    }
    for name, act in acts.items():
        for commands in range(random.randrange(every), 100, every):
            before = await database[ASSETS].count({})
            killed = await killer.run(act, commands=commands)
            await _sweep(database)
            await check(database, ada)
            if not killed or (name != "make a preview" and await database[ASSETS].count({}) != before):
                break
        else:
            raise AssertionError(name)
    assert await database.raw["assets.files"].count_documents({"filename": str(ada.user_id)}) == 0
    assert await database.raw["assetpreviews"].count_documents({}) == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["upload", "upload", "delete", "copy", "trash", "purge", "preview"]), st.integers(0, 11)),
    max_size=14,
)


@pytest.mark.slow
@given(steps=STEPS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_after_any_history_the_gauge_is_what_is_there(database: Database, steps: list[tuple[str, int]]) -> None:
    actor = Actor(kind="user", via="session", user_id=ObjectId())
    await database.raw["users"].insert_one(
        {"_id": actor.user_id, "name": "A", "email": f"{actor.user_id}@x.org", "password": "-"}
    )
    kept, deleted = [await project(database, actor)], list[ObjectId]()
    for step, number in steps:
        where = kept[number % len(kept)]
        listed = (await assets.page(database, actor, where)).items
        match step:
            case "upload":
                await upload(database, actor, where, CONTENTS[number % len(CONTENTS)], declared=number > 5)
            case "delete" if listed:
                await assets.delete(database, actor, where, listed[number % len(listed)].id)
            case "copy" if len(kept) < 3:
                kept.append((await duplicates.make(database, actor, where)).id)
            case "trash" if len(kept) > 1:
                await projects.delete(database, actor, where)
                kept.remove(where)
                deleted.append(where)
            case "purge" if deleted:
                await trash.purge(database, actor, deleted.pop())
            case "preview":
                for asset in listed:
                    if assets_previews.show(asset):
                        await assets_previews.get(database, asset, 256)
        await check(database, actor, swept=False)
    await _sweep(database)
    await check(database, actor)
