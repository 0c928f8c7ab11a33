"""Change streams: being told of a write at once, instead of asking again and again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog
from pymongo.errors import PyMongoError

from ximler.database.connection import Database
from ximler.schema.document import Collection

__all__ = ["inserts"]

_log = structlog.get_logger("ximler.database")
_REOPEN_S = 1.0


async def inserts(database: Database, collection: Collection[Any]) -> AsyncIterator[None]:
    """Yields after every insert into the collection, by anybody, from now on; once more whenever it was out of touch.

    It is a hint that comes within milliseconds, not a promise: what must not be missed is looked for from time to time too.
    """
    only: list[dict[str, Any]] = [{"$match": {"operationType": "insert"}}, {"$project": {"_id": 1}}]
    while True:
        try:
            async with await database.raw[collection.name].watch(only) as stream:
                yield
                async for _ in stream:
                    yield
        except PyMongoError as error:
            _log.debug("change stream lost", collection=collection.name, error=str(error))
            await asyncio.sleep(_REOPEN_S)
