"""Data URLs in files of drawing programs:
lifted into assets at the import, put back byte for byte at the export.

`"data:image/png;base64,iVBOR…"` becomes `"/v1/projects/PROJECT/assets/ASSET#data:image/png;base64"`: an
address at which the picture is found, and the beginning of the data URL. Only a text that comes back byte for
byte is lifted, so one with line breaks or unusual padding stays as it is.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import NamedTuple

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.database import Database, chunks
from ximler.projects import assets, packing
from ximler.projects.imports import Importing
from ximler.schema.asset import ASSETS

__all__ = ["lift", "put_back"]

# Bytes of content beyond its first occurrence: as many as a file that is imported can have.
_MOST_REPEATED = packing.MOST
_LEAST = 1000  # characters: an address is not shorter than a tiny picture
# Not a group for each four characters: a way back from each takes much memory. `_next` checks the length.
_URL = re.compile(rb'"(data:[a-z]+/[a-zA-Z0-9.+-]{1,60};base64),([A-Za-z0-9+/]{%d,}+={0,2})"' % _LEAST)
_LIFTED = re.compile(rb'"/v1/projects/([0-9a-f]{24})/assets/([0-9a-f]{24})#(data:[a-z]+/[a-zA-Z0-9.+-]{1,60};base64)"')


class _Found(NamedTuple):
    start: int
    end: int
    prefix: str
    content: bytes


async def lift(importing: Importing, text: bytes) -> bytes:
    """The text with its data URLs as assets of the project that is imported. Equal ones share an asset."""
    parts: list[bytes] = []
    made: dict[bytes, ObjectId] = {}
    end = 0
    while found := await asyncio.to_thread(_next, text, end):
        asset_id = made.get(found.content)
        if asset_id is None:
            kind = found.prefix.split("/")[1].split(";")[0]
            name = f"{len(made) + 1}.{kind.split('+')[0]}"
            asset_id = (await importing.upload(name, len(found.content), _whole(found.content))).id
            made[found.content] = asset_id
        parts.append(text[end : found.start])
        parts.append(f'"/v1/projects/{importing.project_id}/assets/{asset_id}#{found.prefix}"'.encode())
        end = found.end
    return b"".join([*parts, text[end:]])


async def put_back(database: Database, actor: Actor, project_id: ObjectId, text: bytes) -> AsyncGenerator[bytes, None]:
    """The text, in pieces, with the data URLs that were lifted from it.
    An address whose asset is deleted stays.

    Any number of addresses may have the same content, so after `_MOST_REPEATED` bytes,
    its further addresses stay, too.
    """
    mine = {"userId": actor.require_user(), "projectId": project_id}
    listed = {str(each.id).encode(): each for each in await database[ASSETS].find(mine)}
    seen: set[ObjectId] = set()
    end = repeated = 0
    for found in _LIFTED.finditer(text):
        known = listed.get(found[2])
        if known is None or found[1].decode() != str(project_id):
            continue
        if known.file_id in seen:
            if repeated + known.size_bytes > _MOST_REPEATED:
                continue
            repeated += known.size_bytes
        seen.add(known.file_id)
        try:
            asset = await assets.get(database, actor, project_id, known.id)
        except NotFound:  # deleted meanwhile
            continue
        yield text[end : found.start()] + b'"' + found[3] + b","
        async for piece in assets.read(database, asset, 0, asset.size_bytes):
            yield base64.b64encode(piece)  # chunks have a multiple of three bytes, so no padding comes between them
        yield b'"'
        end = found.end()
    yield text[end:]


def _next(text: bytes, start: int) -> _Found | None:
    while found := _URL.search(text, start):
        with suppress(binascii.Error):  # of a length that no bytes have
            content = base64.b64decode(found[2])
            if base64.b64encode(content) == found[2]:
                return _Found(found.start(), found.end(), found[1].decode(), content)
        start = found.end()
    return None


async def _whole(content: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(content), chunks.CHUNK):
        yield content[start : start + chunks.CHUNK]
