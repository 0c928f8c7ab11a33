"""Assets that nothing shows."""

import bson
import pytest
from bson import ObjectId
from tests.projects.drawings import Drawing
from tests.projects.test_assets import project, upload

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.projects import assets_usage, canvas, versions


async def _unused(database: Database, actor: Actor, where: ObjectId) -> list[str]:
    return [asset.name for asset in (await assets_usage.unused(database, actor, where)).items]


async def test_an_asset_of_the_canvas_or_of_a_kept_version_is_in_use(
    database: Database, ada: Actor, bob: Actor
) -> None:
    where = await project(database, ada)
    made = [await upload(database, ada, where, bytes([n])) for n in range(4)]
    names = [str(asset.id) for asset in made]
    for each, name in zip(made, "abcd", strict=True):
        await database.raw["assets"].update_one({"_id": each.id}, {"$set": {"name": name}})
    assert await _unused(database, ada, where) == ["d", "c", "b", "a"]

    await canvas.replace(database, ada, where, {"files": {names[0]: 1}, "src": f"/x/{names[1]}?token=1"}, based_on=None)
    kept = await versions.create(database, ada, where)
    assert await _unused(database, ada, where) == ["d", "c"]
    await canvas.replace(database, ada, where, {"elements": [{"fileId": names[2]}]}, based_on=None)
    assert await _unused(database, ada, where) == ["d"]
    page = await assets_usage.unused(database, ada, where, first=1)
    assert not page.has_next
    await versions.delete(database, ada, where, kept.id)
    assert await _unused(database, ada, where) == ["d", "b", "a"]
    with pytest.raises(NotFound):
        await assets_usage.unused(database, bob, where)


async def test_a_large_canvas_is_searched(database: Database, ada: Actor, drawing: Drawing) -> None:
    asset = await upload(database, ada, drawing.id, b"x")
    many = {"a": [f"/v1/assets/{asset.id}?token={n}" for n in range(200)]}
    await canvas.replace(database, ada, drawing.id, many, based_on=None)
    assert await _unused(database, ada, drawing.id) == []


def test_an_id_is_found_within_a_longer_run_of_digits() -> None:
    ids = [ObjectId() for _ in range(3)]
    data = bson.encode({"v": {"a": f"ff{ids[0]}00", "é": str(ids[1])[:-1], "b": str(ids[2])}})
    known = {str(each).encode() for each in ids}
    assert assets_usage.shown_in(data, known) == {ids[0], ids[2]}
