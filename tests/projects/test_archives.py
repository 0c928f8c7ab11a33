"""Projects as archives and files: exported, imported whole or not at all."""

import base64
import hashlib
import io
import json
import os
import stat
import tracemalloc
import zipfile
from typing import Any

import pytest
from bson import ObjectId
from tests.accounts.test_avatars import picture
from tests.projects.test_assets import MOST, check, later, project, upload

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, LimitExceeded, NotFound
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.projects import archives, assets, canvas, data_urls, imports, projects, versions
from ximler.schema.project_import import PROJECT_IMPORTS


async def _export(database: Database, actor: Actor, project_id: ObjectId, **which: bool) -> bytes:
    return b"".join([piece async for piece in await archives.export(database, actor, project_id, **which)])


async def _load(database: Database, actor: Actor, archive: bytes, **more: Any) -> ObjectId:
    return await archives.load(database, actor, io.BytesIO(archive), **{"most": MOST, **more})


def _zip(entries: dict[str, bytes | zipfile.ZipInfo], **replaced: Any) -> bytes:
    """An archive like an exported one, with other entries, too."""
    manifest = {"format": "ximler.project/1", "id": str(ObjectId()), "name": "n", **replaced}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in {"project.json": json.dumps(manifest).encode(), "canvas.json": b"{}", **entries}.items():
            if isinstance(content, zipfile.ZipInfo):
                made.writestr(content, b"/etc/passwd")
            else:
                made.writestr(name, content)
    return out.getvalue()


async def _nothing_left(database: Database, actor: Actor, before: int) -> None:
    assert await check(database, actor, swept=False) == before  # the sweep of assets removes what GridFS has
    assert await database.raw["projects"].count_documents({"userId": actor.user_id, "name": "n"}) == 0
    assert await database[PROJECT_IMPORTS].count({}) == 0


@pytest.mark.slow
async def test_an_imported_archive_is_the_exported_project(database: Database, ada: Actor, bob: Actor) -> None:
    made = await projects.create(
        database, ada, name="Plan 报告", description="d", settings={"records": {"list": "shapes", "id": "key"}}
    )
    await projects.update(database, ada, made.id, {"tags": ["a"], "location": {"longitude": 2.5, "latitude": 49.0}})
    first, second = [await upload(database, ada, made.id, picture(size=(9, n))) for n in (5, 6)]
    drawn = {"shapes": [{"key": "a", "src": f"/v1/projects/{made.id}/assets/{first.id}"}], "id": str(second.id)}
    await canvas.replace(database, ada, made.id, drawn, based_on=None)
    await versions.create(database, ada, made.id, name="one")
    await canvas.replace(database, ada, made.id, {"shapes": [{"file": str(second.id)}]}, based_on=None)
    archive = await _export(database, ada, made.id)
    with pytest.raises(NotFound):
        await _export(database, bob, made.id)

    copy = await _load(database, bob, archive)
    got = await projects.get(database, bob, copy)
    assert (got.name, got.description, got.tags) == ("Plan 报告", "d", ["a"])
    assert got.location == {"type": "Point", "coordinates": [2.5, 49.0]}
    assert await projects.settings_of(database, bob, [copy]) == {copy: {"records": {"list": "shapes", "id": "key"}}}
    theirs = {each.digest: each for each in (await assets.page(database, bob, copy)).items}
    assert set(theirs) == {first.digest, second.digest}
    ids = {str(made.id): str(copy)} | {str(each.id): str(theirs[each.digest].id) for each in (first, second)}
    expected = json.dumps(drawn)
    for old, new in ids.items():
        expected = expected.replace(old, new)
    kept = (await versions.page(database, bob, copy)).items
    assert [each.name for each in kept] == ["one"]
    assert await versions.content(database, bob, copy, kept[0].id) == json.loads(expected)
    now = (await canvas.read(database, bob, copy)).canvas_data
    assert now == {"shapes": [{"file": ids[str(second.id)]}]}
    content = assets.read(database, theirs[first.digest], 0, first.size_bytes)
    assert b"".join([piece async for piece in content]) == picture(size=(9, 5))
    await check(database, bob)

    with zipfile.ZipFile(
        io.BytesIO(await _export(database, ada, made.id, with_versions=False, with_assets=False))
    ) as z:
        assert z.namelist() == ["canvas.json", "project.json"]


async def test_an_archive_has_what_is_not_deleted_while_it_is_made(database: Database, ada: Actor, bob: Actor) -> None:
    made = await projects.create(database, ada, name="n")
    whole, cut, gone = [await upload(database, ada, made.id, os.urandom(size)) for size in (3_000_000, 9, 9)]
    _, pruned = [await versions.create(database, ada, made.id, name=name) for name in ("first", "pruned")]

    async def export(after: str, delete: Any) -> bytes:
        """An export, with a deletion as soon as it has sent an entry's beginning."""
        pieces, sent = await archives.export(database, ada, made.id), b""
        async for piece in pieces:
            sent += piece
            if after.encode() in sent and delete is not None:
                await delete()
                delete = None
        assert delete is None
        return sent

    async def some() -> None:
        await versions.delete(database, ada, made.id, pruned.id)
        for each in (cut, gone):
            await assets.delete(database, ada, made.id, each.id)

    archive = await export("versions/0000.json", some)
    copy = await _load(database, bob, archive)
    assert [each.digest for each in (await assets.page(database, bob, copy)).items] == [whole.digest]
    assert [each.name for each in (await versions.page(database, bob, copy)).items] == ["first"]

    async def half() -> None:
        await assets.delete(database, ada, made.id, whole.id)

    archive = await export(f"assets/{whole.id}", half)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        listed = json.loads(opened.read("project.json"))["assets"]
        assert [each.file_size < 3_000_000 for each in opened.infolist() if str(whole.id) in each.filename] == [True]
    assert listed == []
    await _load(database, bob, archive)

    async def all_of_it() -> None:
        await projects.delete(database, ada, made.id)

    with pytest.raises(NotFound):
        await export("canvas.json", all_of_it)


def _link() -> zipfile.ZipInfo:
    link = zipfile.ZipInfo(f"assets/{ObjectId()}/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link


_A = "0" * 24
_V = {"path": "versions/0000.json", "createdAt": "2026-01-01T00:00:00Z"}
_FILE = {"id": _A, "path": f"assets/{_A}/a", "name": "a"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (b"PK\x03\x04 and then nothing", "no zip archive"),
        (_zip({"../../etc/passwd": b"x"}), r"entry '\.\./\.\./etc/passwd'"),
        (_zip({"/etc/passwd": b"x"}), "entry '/etc/passwd'"),
        (_zip({f"assets/{_A}/..": b"x"}), r"entry 'assets/0+/\.\.'"),
        (_zip({"link": _link()}), "link, 'assets/"),
        (_zip({"canvas.json": b"{", "x": b""}), "entry 'x'"),
        (_zip({"canvas.json": b'{"a": 1'}), "entry canvas.json"),
        (_zip({"canvas.json": b'{"a": 1, "a": 2}'}), "entry canvas.json"),
        (_zip({}, format="other"), "another project.json"),
        (_zip({}, assets=[_FILE]), f"lacks the entry '{_FILE['path']}'"),
        (_zip({_FILE["path"]: b"x"}, assets=[_FILE | {"sha256": "0" * 64}]), "content is not the one"),
        (_zip({_FILE["path"]: bytes(3_000_000)}, assets=[_FILE]), "^A file may have"),
        (_zip({_FILE["path"]: b"x"}, assets=[_FILE, _FILE | {"id": "1" * 24}]), "the entry 'assets/.*more than once"),
        (_zip({_FILE["path"]: b"x"}, assets=[_FILE, _FILE | {"path": "assets/x"}]), "the asset '.*more than once"),
        (_zip({_V["path"]: b"{}"}, versions=[_V, _V]), "the entry 'versions/.*more than once"),
        (_zip({}, versions=[_V | {"path": "canvas.json"}]), "the entry 'canvas.json' more than once"),
        (_zip({_V["path"]: b"[1"}, versions=[_V]), "entry versions/0000.json"),
        (_zip({_V["path"]: b"{}"}, versions=[_V | {"name": " "}]), r"'versions/0000\.json', .*name: is empty"),
        (_zip({}, versions=[_V | {"createdAt": "2026-01-01T00:00:00"}]), r"time.*\$\.versions\[0\]\.createdAt"),
        (_zip({}, versions=[_V | {"createdAt": "0001-01-01T00:00:00+14:00"}]), r"before 1970.*versions\[0\]"),
        (_zip({}, versions=[_V, _V | {"revision": 10**18}]), r"versions\[1\]\.revision"),
        (_zip({}, versions=[_V | {"revision": -5}]), r"versions\[0\]\.revision"),
        (_zip({}, createdAt="2026-01-01T00:00:00"), r"\$\.createdAt"),
        (_zip({}, assets=[_FILE | {"name": "n" * 300}]), r"assets\[0\]\.name"),
        (_zip({}, location={"longitude": 1, "latitude": 91}), r"'project\.json', .*location\.latitude"),
        (_zip({}, tags=["t"] * 21 + [str(n) for n in range(20)]), r"'project\.json', .*tags"),
        (_zip({f"assets/{n:024}/a": b"" for n in range(2100)}), "more than 2,002 entries"),
        (_zip({f"assets/{n:024}/{'a' * 200}": b"" for n in range(5000)}), "directory is too large"),
    ],
)  # fmt: skip
async def test_an_archive_that_is_none_leaves_nothing(
    database: Database, ada: Actor, archive: bytes, said: str
) -> None:
    before = await check(database, ada)
    with pytest.raises(Invalid, match=said):
        await _load(database, ada, archive, most=2_000_000)
    await _nothing_left(database, ada, before)


@pytest.mark.slow
async def test_bombs_are_refused_before_they_are_inflated(database: Database, ada: Actor) -> None:
    archive = _zip({"canvas.json": b"[" + b" " * 64_000_001 + b"]"})
    assert len(archive) < 100_000
    with pytest.raises(Invalid, match=r"'canvas\.json', which is larger than"):
        await _load(database, ada, archive)
    declared = _zip({_FILE["path"]: bytes(1000)}, assets=[_FILE])
    lying = declared.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(Invalid, match="damaged entry 'assets/"):
        await _load(database, ada, lying)
    await database.raw["plans"].update_one({"id": "free"}, {"$set": {"limits.storage": 0.001}})
    files = [_FILE | {"id": f"{n:024x}", "path": f"assets/{n:024x}/a"} for n in range(3)]
    with pytest.raises(LimitExceeded), round_trips() as trips:  # together, before the first is written
        await _load(database, ada, _zip({each["path"]: bytes(400_000) for each in files}, assets=files))
    assert [each for each in trips if each[0] in ("insert", "update", "findAndModify")] == []
    equal = [each | {"sha256": hashlib.sha256(bytes(400_000)).hexdigest()} for each in files]
    await _load(database, ada, _zip({each["path"]: bytes(400_000) for each in equal}, name="equal", assets=equal))
    await _load(database, ada, _zip({each["path"]: bytes(400_000) for each in equal}, name="again", assets=equal))
    await _nothing_left(database, ada, await check(database, ada))


@pytest.mark.slow
async def test_a_drawing_comes_back_byte_for_byte(database: Database, ada: Actor) -> None:
    large, small = os.urandom(600_001), os.urandom(9)
    url, tiny = (f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in (large, small))
    odd = "data:image/png;base64," + "A" * 1001
    text = (
        '{ "type":"excalidraw",\n "elements": [{"id": "a", "x": 1.50, "y": 1e3}], "$schema.x": "ü\\u00fc",\n'
        f' "files": {{"a": {{"dataURL": "{url}"}}, "b": {{"dataURL":"{url}"}}, "c": "{tiny}", "d": "{odd}"}}}}\n'
    ).encode()
    made = await archives.load_file(database, ada, text, name="d", most=MOST)
    listed = (await assets.page(database, ada, made)).items
    assert [each.size_bytes for each in listed] == [600_001]
    lifted = (await canvas.read(database, ada, made)).canvas_data["files"]
    assert lifted["a"]["dataURL"] == f"/v1/projects/{made}/assets/{listed[0].id}#data:image/png;base64"
    assert (lifted["c"], lifted["d"]) == (tiny, odd)
    back = [piece async for piece in await archives.export_file(database, ada, made)]
    assert b"".join(back) == text
    copy = await _load(database, ada, await _export(database, ada, made))
    assert b"".join([piece async for piece in await archives.export_file(database, ada, copy)]) == text
    await assets.delete(database, ada, made, listed[0].id)
    assert b"#data:image/png;base64" in b"".join(
        [piece async for piece in await archives.export_file(database, ada, made)]
    )


async def test_the_same_content_is_put_back_so_many_times(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_urls, "_MOST_REPEATED", 2500)
    made = await project(database, ada)
    same = [await upload(database, ada, made, b"a" * 1000) for _ in "12"]
    other = await upload(database, ada, made, b"b" * 3000)
    shown = [f"/v1/projects/{made}/assets/{each.id}#data:image/png;base64" for each in (*same, *same, other, other)]
    await canvas.replace(
        database, ada, made, {"files": [*shown, shown[0].replace(str(same[0].id), "0" * 24)]}, based_on=None
    )
    text = b"".join([piece async for piece in await archives.export_file(database, ada, made)])
    assert [each.startswith("data:") for each in json.loads(text)["files"]] == [True] * 3 + [False, True, False, False]


def test_the_search_for_data_urls_takes_little_memory() -> None:
    text = b'{"a": "data:image/png;base64,' + b"A" * 2_000_000 + b'!"}'
    tracemalloc.start()
    assert data_urls._next(text, 0) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


async def test_the_project_of_a_killed_import_is_removed(database: Database, ada: Actor) -> None:
    before = await check(database, ada)
    async with imports.importing(database, ada, most=MOST, name="whole") as under_way:
        await upload(database, ada, under_way.project_id, b"x")
        assert await imports.sweep(database=database) == 0
    kept = await check(database, ada)
    assert kept > before

    killed = imports.importing(database, ada, most=MOST, name="n")
    under_way = await killed.__aenter__()
    await upload(database, ada, under_way.project_id, b"other")
    later(database, minutes=6)
    assert await imports.sweep(database=database) == 1
    with pytest.raises(Conflict, match="took too long"):
        await under_way.finish()
    await _nothing_left(database, ada, kept)
    assert await project(database, ada)
