"""Previews of pictures: small, made once, never without their file."""

import asyncio
import io

import pytest
from PIL import Image
from tests.accounts.test_avatars import huge_png, picture
from tests.projects.test_assets import check, project, upload

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, XimlerError
from ximler.database import Database
from ximler.projects import assets, assets_previews
from ximler.schema.asset import ASSET_PREVIEWS


@pytest.mark.slow
async def test_a_preview_is_small_and_made_once(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = await project(database, ada)
    asset = await upload(database, ada, where, picture("JPEG", (3000, 1500)))
    for side, size in ((256, (256, 128)), (1024, (1024, 512))):
        first, *others = await asyncio.gather(*(assets_previews.get(database, asset, side) for _ in range(4)))
        with Image.open(io.BytesIO(first)) as shown:
            assert (shown.format, shown.size) == ("WEBP", size)
        assert others == [first] * 3
    monkeypatch.setattr(assets, "read", None)
    assert await assets_previews.get(database, asset, 256)
    assert await database[ASSET_PREVIEWS].count({}) == 2
    before = await check(database, ada)
    await assets.delete(database, ada, where, asset.id)
    assert await check(database, ada) == before - asset.size_bytes
    assert await database[ASSET_PREVIEWS].count({}) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (huge_png(40_000), "pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "exists only of"),
        (b"GIF89a<script>alert(1)</script>", "cannot be read|not a picture"),
    ],
)
async def test_files_without_a_preview(database: Database, ada: Actor, content: bytes, said: str) -> None:
    asset = await upload(database, ada, await project(database, ada), content)
    with pytest.raises(Invalid, match=said):
        await assets_previews.get(database, asset, 256)
    with pytest.raises(Invalid, match="must be one of 256, 1024"):
        await assets_previews.get(database, asset, 255)
    assert await database[ASSET_PREVIEWS].count({}) == 0


@pytest.mark.slow
async def test_a_preview_that_is_made_while_its_file_is_deleted_leaves_nothing(database: Database, ada: Actor) -> None:
    where = await project(database, ada)

    async def either(n: int) -> None:
        asset = await upload(database, ada, where, picture(size=(300 + n, 200)))
        made, _ = await asyncio.gather(
            assets_previews.get(database, asset, 256),
            assets.delete(database, ada, where, asset.id),
            return_exceptions=True,
        )
        assert isinstance(made, bytes | XimlerError)

    for n in range(5):
        await either(n)
    assert await database[ASSET_PREVIEWS].count({}) == 0
