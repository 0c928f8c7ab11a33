"""Assets that nothing shows."""

import re

import bson
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from tests.projects.drawings import Drawing
from tests.projects.test_assets import project, upload

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database
from ximler.projects import assets_usage, canvas, mentions, versions


async def _unused(database: Database, actor: Actor, where: ObjectId) -> list[str]:
    return [asset.name for asset in (await assets_usage.unused(database, actor, where)).items]


@pytest.mark.slow
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


async def test_versions_of_an_earlier_release_are_read_for_their_assets(database: Database, ada: Actor) -> None:
    where = await project(database, ada)
    shown, unused = [await upload(database, ada, where, bytes([n])) for n in range(2)]
    await canvas.replace(database, ada, where, {"a": str(shown.id)}, based_on=None)
    kept = await versions.create(database, ada, where)
    await canvas.replace(database, ada, where, {}, based_on=None)
    await database.raw["canvasversions"].update_one({"_id": kept.id}, {"$unset": {"assets": ""}})
    assert (await versions.get(database, ada, where, kept.id)).assets is None
    for _ in range(2):
        assert [each.id for each in (await assets_usage.unused(database, ada, where)).items] == [unused.id]
        assert (await versions.get(database, ada, where, kept.id)).assets == [shown.id]


def test_an_id_is_found_and_replaced_also_between_further_digits() -> None:
    ids = [ObjectId() for _ in range(3)]
    text = f"ff{ids[0]}00 {str(ids[1])[:-1]}/{ids[2]}{ids[2]}"
    known = {str(each).encode() for each in ids}
    assert mentions.mentioned(bson.encode({"v": {text: 1}}), known) == {ids[0], ids[2]}
    renamed = mentions.renamer({str(each): "x" for each in ids})(text)
    assert renamed == f"ffx00 {str(ids[1])[:-1]}/xx"
    assert mentions.renamer(dict.fromkeys(known, b"x"))(text.encode()) == renamed.encode()


@given(st.lists(st.integers(0, 7), max_size=30), st.integers(24, 60))
def test_ids_are_found_wherever_the_text_is_cut(chosen: list[int], piece: int) -> None:
    names = {f"{n:x}b{n:022x}": f"<{n}>" for n in range(4)}
    parts = [*names, "0b", "f", "/", "3" * 23]
    text = "".join(parts[each] for each in chosen)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mentions, "_PIECE", piece)
        renamed = mentions.renamer(names)(text)
        mentioned = mentions.mentioned(text.encode(), {each.encode() for each in names})
    assert renamed == re.sub("|".join(names), lambda found: names[found[0]], text)
    assert {str(each) for each in mentioned} == set(re.findall("|".join(names), text))
