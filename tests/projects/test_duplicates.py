"""Copies of projects: what they contain, what they cost, and that they live apart from the original."""

import asyncio

import pytest
from tests.projects.test_assets import upload
from tests.projects.test_trash import used

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.projects import assets, assets_storage, duplicates, projects


async def test_a_copy_has_the_content_and_shows_assets_of_its_own_at_no_cost(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="Plan", description="d", settings={"g": 1}, tags=["Draft"])
    asset = await upload(database, ada, made.id, b"picture" * 1000)
    other = "0123456789abcdef01234567"
    canvas = {"image": f"/v1/projects/{made.id}/assets/{asset.id}", str(asset.id): [str(asset.id), other]}
    await projects.update(database, ada, made.id, {"canvas_data": canvas})
    before = await used(database, ada)

    copied = await duplicates.make(database, ada, made.id)
    (shown,) = (await assets.page(database, ada, copied.id)).items
    assert (copied.name, copied.description, copied.settings, copied.tags) == ("Plan", "d", {"g": 1}, ["draft"])
    assert copied.canvas_data == {
        "image": f"/v1/projects/{copied.id}/assets/{shown.id}",
        str(shown.id): [str(shown.id), other],
    }
    assert (shown.id != asset.id, shown.file_id, shown.name) == (True, asset.file_id, asset.name)
    assert await used(database, ada) == (before[0] + 1, before[1] + copied.storage_size)
    assert copied.storage_size < 1000

    await assets.delete(database, ada, made.id, asset.id)
    await assets_storage.sweep(database=database)
    pieces = [piece async for piece in assets.read(database, shown, 0, shown.size_bytes)]
    assert b"".join(pieces) == b"picture" * 1000
    assert await used(database, ada) == (before[0] + 1, before[1] + copied.storage_size)


@pytest.mark.slow
async def test_assets_deleted_while_a_copy_is_made_are_left_out_or_whole(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="P")
    kept = [await upload(database, ada, made.id, bytes([n]) * 100) for n in range(6)]
    copied, *_ = await asyncio.gather(
        duplicates.make(database, ada, made.id),
        *(assets.delete(database, ada, made.id, each.id) for each in kept),
    )
    await assets_storage.sweep(database=database)
    for shown in (await assets.page(database, ada, copied.id)).items:
        pieces = [piece async for piece in assets.read(database, shown, 0, shown.size_bytes)]
        assert len(b"".join(pieces)) == 100
    listed = (await projects.page(database, ada)).items
    assert await used(database, ada) == (2, sum(each.storage_size for each in listed))


async def test_deleted_projects_and_those_of_others_are_not_copied(database: Database, ada: Actor, bob: Actor) -> None:
    made = await projects.create(database, ada, name="P")
    with pytest.raises(NotFound):
        await duplicates.make(database, bob, made.id)
    await projects.delete(database, ada, made.id)
    with pytest.raises(NotFound):
        await duplicates.make(database, ada, made.id)
