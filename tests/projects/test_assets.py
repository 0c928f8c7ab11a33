"""Assets: what they store, and what they count."""

import asyncio

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering.quota import gauges
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import assets, assets_storage, assets_uploads, projects, trash
from ximler.schema.asset import ASSET_FILES, ASSET_PREVIEWS, ASSETS

pytestmark = pytest.mark.slow

MOST = 100_000_000


async def project(database: Database, actor: Actor) -> ObjectId:
    return (await projects.create(database, actor, name="p")).id


async def upload(
    database: Database, actor: Actor, where: ObjectId, content: bytes, *, declared: bool = True
) -> assets.Asset:
    size = len(content) if declared else None
    receiving = await assets_uploads.begin(database, actor, where, name="a", size_bytes=size, most=MOST)
    try:
        for start in range(0, len(content), 300_000):
            await receiving.write(content[start : start + 300_000])
        return await receiving.finish()
    except Exception:
        await receiving.abandon()
        raise


async def check(database: Database, actor: Actor, *, swept: bool = True) -> int:
    """Gauge, projects, files and GridFS agree; returns the gauge."""
    user_id = actor.require_user()
    found = [each async for each in database.raw["projects"].find({"userId": user_id})]
    files = await database[ASSET_FILES].find({"userId": user_id})
    for each in found:
        charged = sum(file.charged_bytes for file in files if file.project_id == each["_id"])
        assert each.get("assetsSize", 0) == charged
    was, now = await database.transaction(lambda transaction: gauges.recount(transaction, user_id))
    assert (was.projects, was.storage_bytes) == (now.projects, now.storage_bytes)
    references = {asset.file_id for asset in await database[ASSETS].find({"userId": user_id})}
    assert references == {file.id for file in files if file.state == "STORED"}
    stored = {
        each["_id"]: each["length"] async for each in database.raw["assets.files"].find({"filename": str(user_id)})
    }
    if swept:
        previews = await database[ASSET_PREVIEWS].find({"userId": user_id})
        assert {preview.file_id for preview in previews} <= references
        assert stored == {file.id: file.charged_bytes for file in files if file.state == "STORED"}
        left = await database.raw["assets.chunks"].distinct("files_id")
        known = [file.id for file in await database[ASSET_FILES].find({})]
        assert set(left) <= set(known)
    return now.storage_bytes


async def limit(database: Database, size: int) -> None:
    await database.raw["plans"].update_one({"id": "free"}, {"$set": {"limits.storage": size / 10**9}})


async def test_equal_content_of_a_user_is_stored_once(database: Database, ada: Actor, bob: Actor) -> None:
    one, two = await project(database, ada), await project(database, ada)
    empty = await check(database, ada)
    first = await upload(database, ada, one, b"x" * 1000)
    again = await upload(database, ada, one, b"x" * 1000, declared=False)
    other = await upload(database, ada, two, b"x" * 1000)
    assert await check(database, ada) == empty + 1000
    assert len({first.file_id, again.file_id, other.file_id}) == 1
    theirs = await upload(database, bob, await project(database, bob), b"x" * 1000)
    assert theirs.file_id != first.file_id

    await assets.delete(database, ada, one, first.id)
    assert await check(database, ada) == empty + 1000
    await assets.delete(database, ada, one, again.id)  # counts for the other project from now on
    assert await check(database, ada) == empty + 1000
    assert b"".join([piece async for piece in assets.read(database, other, 0, 1000)]) == b"x" * 1000
    await assets.delete(database, ada, two, other.id)
    assert await check(database, ada) == empty


async def test_a_purged_project_leaves_files_that_others_have(database: Database, ada: Actor) -> None:
    one, two = await project(database, ada), await project(database, ada)
    await upload(database, ada, one, b"x" * 1000)
    await upload(database, ada, one, b"y" * 500)
    await upload(database, ada, two, b"x" * 1000)
    before = await check(database, ada)
    await projects.delete(database, ada, one)
    assert await check(database, ada) == before
    await trash.purge(database, ada, one)
    assert await check(database, ada, swept=False) == before - 500 - 10  # and the empty project's own bytes
    later(database, minutes=11)
    await assets_storage.sweep(database=database)
    await check(database, ada)
    assert len(await database[ASSET_FILES].find({})) == 1


async def test_of_two_uploads_for_the_last_bytes_one_succeeds(database: Database, ada: Actor) -> None:
    where = await project(database, ada)
    used = await check(database, ada)
    await limit(database, used + 1_000_000)
    for declared in (True, False):
        done = await asyncio.gather(
            *(upload(database, ada, where, bytes([n]) * 900_000, declared=declared) for n in (1, 2)),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in done) == ["Asset", "QuotaExceeded"]
        assert await check(database, ada) == used + 900_000
        (kept,) = (each for each in done if not isinstance(each, BaseException))
        await assets.delete(database, ada, where, kept.id)


async def test_an_upload_past_the_quota_leaves_nothing(database: Database, ada: Actor) -> None:
    where = await project(database, ada)
    used = await check(database, ada)
    await limit(database, used + 5_000_000)
    with pytest.raises(QuotaExceeded):
        await upload(database, ada, where, b"x" * 5_000_001, declared=False)
    assert await check(database, ada) == used
    assert await database[ASSET_FILES].find({}) == []
    await upload(database, ada, where, b"x" * 5_000_000, declared=False)


async def test_an_abandoned_upload_is_swept_and_a_slow_one_is_not(database: Database, ada: Actor) -> None:
    where = await project(database, ada)
    used = await check(database, ada)
    dead = await assets_uploads.begin(database, ada, where, name="a", size_bytes=3_000_000, most=MOST)
    await dead.write(b"x" * 2_500_000)
    slow = await assets_uploads.begin(database, ada, where, name="a", size_bytes=3_000_000, most=MOST)
    later(database, minutes=3)
    slow._renewed -= 180
    await slow.write(b"x" * 10)
    await assets_storage.sweep(database=database)
    assert await check(database, ada) == used + 3_000_000
    with pytest.raises(assets_uploads.UploadEnded):
        await dead.finish()
    await dead.abandon()
    later(database, minutes=11)
    slow._renewed -= 1000
    await slow.write(b"x" * 2_999_990)
    await assets_storage.sweep(database=database)
    assert (await slow.finish()).size_bytes == 3_000_000
    assert await check(database, ada) == used + 3_000_000
    assert len(await database[ASSET_FILES].find({})) == 1


def later(database: Database, *, minutes: int) -> None:
    database.clock.offset_ms += minutes * 60_000
