"""Previews of pictures, in two sizes: made at the first request, kept for 30 days, not counted as storage.
About a thousand of the newest are kept per user: a file of a few kilobytes may have a preview of a megabyte.

A preview is a cache entry: it can be made again from its file at any time. It is stored in the transaction
that finds the file in use, and removed with the file, so it never outlives it.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from bson import ObjectId

from ximler.accounts import pictures
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.projects import assets
from ximler.schema.asset import ASSET_FILES, ASSET_PREVIEWS, Asset, AssetPreview

__all__ = ["CONTENT_TYPE", "SIDES", "get", "require_side", "show"]

CONTENT_TYPE = pictures.CONTENT_TYPE
SIDES = (256, 1024)  # pixels of the longer side, at most
_KEPT = timedelta(days=30)
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_MOST = 1000  # of a user
_TRIMMED = 50  # at once, so that only one in fifty uploads is slower
_turn = asyncio.Semaphore(1)  # a file waits in the database for its turn to be decoded, not in memory


def show(asset: Asset) -> bool:
    """Whether the asset may have previews. A damaged picture, or one of too many pixels, still has none."""
    return asset.content_type in _PICTURES and asset.size_bytes <= pictures.MAX_BYTES


def require_side(side: int) -> int:
    """Raises Invalid for a size that previews do not have."""
    if side not in SIDES:
        raise Invalid.field("preview", f"must be one of {', '.join(map(str, SIDES))}")
    return side


async def get(database: Database, asset: Asset, side: int) -> bytes:
    """The picture in WebP, at most `side` pixels wide and high. Raises Invalid for a file that has no
    preview, NotFound if it is deleted meanwhile.
    """
    require_side(side)
    if not show(asset):
        most = pictures.MAX_BYTES // 1_000_000
        raise Invalid.field("preview", f"exists only of PNG, JPEG, WebP and GIF pictures of at most {most} MB")
    preview_id = asset.file_id.binary + side.to_bytes(2)
    where = {"_id": preview_id, "userId": asset.user_id}
    if found := await database[ASSET_PREVIEWS].find_one(where):
        return found.data
    async with _turn:
        if found := await database[ASSET_PREVIEWS].find_one(where):  # another request has made it
            return found.data
        content = [piece async for piece in assets.read(database, asset, 0, asset.size_bytes)]
        preview = AssetPreview(
            id=preview_id,
            user_id=asset.user_id,
            file_id=asset.file_id,
            data=await pictures.thumbnail(b"".join(content), "preview", side=side),
            expires_at=database.clock.now() + _KEPT,
        )

    async def write(transaction: Database) -> None:
        stored = {"_id": asset.file_id, "userId": asset.user_id, "state": "STORED"}
        if not await transaction[ASSET_FILES].patch(stored, {"$inc": {"generation": 1}}):
            raise NotFound("No such asset")
        await transaction[ASSET_PREVIEWS].insert(preview)

    with suppress(DocumentExists):  # another process has made it
        await database.transaction(write)
        await _trim(database, asset.user_id)
    return preview.data


async def _trim(database: Database, user_id: ObjectId) -> None:
    """Remove the oldest previews of a user who has too many. One command, or two."""
    theirs = {"userId": user_id}
    count = await database[ASSET_PREVIEWS].count_keys(theirs, most=_MOST + _TRIMMED, index="userId_1_fileId_1")
    if count < _MOST + _TRIMMED:
        return
    oldest = await database[ASSET_PREVIEWS].aggregate(
        [
            {"$match": theirs},
            {"$project": {"expiresAt": 1}},
            {"$sort": {"expiresAt": 1, "_id": 1}},
            {"$limit": _TRIMMED},
        ]
    )
    await database[ASSET_PREVIEWS].delete_many({"userId": user_id, "_id": {"$in": [each["_id"] for each in oldest]}})
