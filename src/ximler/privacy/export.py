"""Export of a user's data: a zip archive of JSON files and uploaded files, streamed while it is read.

Memory is bounded by a batch of documents and the compressor's window. The archive is not a snapshot:
concurrent changes may or may not be included. A truncated archive does not open, because a zip's directory
comes last.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from bson import ObjectId

from ximler.accounts import export as accounts
from ximler.accounts import step_up
from ximler.accounts.avatars import BUCKET as AVATARS
from ximler.audit import records, search
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.core.extended_json import plain
from ximler.core.zips import Entry, zipped
from ximler.database import Database, files
from ximler.database.chunks import Damaged
from ximler.database.collection import TypedCollection
from ximler.projects import assets, bases
from ximler.schema import SPECIFIED
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.document import Collection
from ximler.schema.project import PROJECTS

__all__ = ["CONTENTS", "take"]

# Collection by file. The fields' marks determine which are exported.
CONTENTS: dict[str, Collection[Any]] = {
    "history.json" if c is AUDIT_LOGS else f"{c.name}.json": c for c in SPECIFIED if c.user_field
}
_BUCKETS = {"avatars": AVATARS}
_EXTENSIONS = {"image/webp": "webp"}
_BATCH = 200  # documents per batch; MongoDB also ends a batch at 16 MB
_PIECE = 256_000  # bytes per call of the compressor


async def take(database: Database, actor: Actor, user_id: ObjectId) -> AsyncIterator[bytes]:
    """Stream the archive. Users export their own data after a recent sign-in, operators any user's. Audited.

    Raises Unauthenticated, StepUpRequired, NotFound before the first byte.
    """
    step_up.require(database, actor)
    if user_id != actor.user_id and actor.kind not in ("operator", "system"):
        raise NotFound("No such user")
    account = await accounts.account(database, user_id)

    async def write(transaction: Database) -> None:
        await records.write(
            transaction, actor, Action.DATA_EXPORTED, resource="users", resource_id=user_id, user_id=user_id
        )

    await database.transaction(write)
    return zipped(_entries(database, user_id, account), database.clock.now())


async def _entries(database: Database, user_id: ObjectId, account: dict[str, Any]) -> AsyncIterator[Entry]:
    yield Entry("account.json", _whole(_json(account)))
    for name, collection in CONTENTS.items():
        yield Entry(name, _documents(database, database[collection], user_id, collection.exported))
    for folder, bucket in _BUCKETS.items():
        for file in await files.stored_by(database, bucket, user_id):
            extension = _EXTENSIONS.get(file.content_type, "bin")
            yield Entry(f"{folder}/{file.id}.{extension}", files.read(database, bucket, file.id))
    async for asset in assets.stored_by(database, user_id):
        yield Entry(f"assets/{asset.project_id}/{asset.id}/{asset.name}", _content(database, asset))


async def _content(database: Database, asset: assets.Asset) -> AsyncGenerator[bytes, None]:
    with suppress(Damaged):  # deleted while the archive is made
        async with aclosing(assets.read(database, asset, 0, asset.size_bytes)) as pieces:
            async for piece in pieces:
                yield piece


async def _whole(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


async def _documents(
    database: Database, collection: TypedCollection[Any], user_id: ObjectId, fields: tuple[str, ...]
) -> AsyncGenerator[bytes, None]:
    """A JSON array in pieces, one document per line."""
    document = collection.spec.document
    attributes = dict(zip(document.__struct_encode_fields__, document.__struct_fields__, strict=True))
    pairs = [(name, attributes[name]) for name in fields]
    piece = bytearray(b"[")
    separator = b"\n"
    log = collection.spec is AUDIT_LOGS
    where = search.visible_to_owner(user_id) if log else {"userId": user_id}
    async with aclosing(collection.stream(where, deleted=True, batch=_BATCH)) as found:
        async for each in found:
            if log:
                search.without_others(each)
            elif collection.spec is PROJECTS and each.canvas_base is not None:
                each.canvas_data = await _canvas(database, each.id)
            piece += separator
            piece += _json({name: getattr(each, attribute) for name, attribute in pairs})
            separator = b",\n"
            if len(piece) >= _PIECE:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece) + b"\n]\n"


async def _canvas(database: Database, project_id: ObjectId) -> Any:
    found = await bases.read(database, {"_id": project_id}, deleted=True)
    return found.canvas_data if found else {}


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=plain)
