"""Receipts: a use under an idempotency key counts once in a day, however often it is asked for."""

import hashlib
from datetime import timedelta

from bson import ObjectId

from ximler.core.errors import Conflict, Invalid
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.receipt import KEEP_S, RECEIPTS, Receipt
from ximler.schema.usage import ResourceType

__all__ = ["KeyReused", "find", "keep", "receipt"]

_MAX_KEY = 255


class KeyReused(Conflict):
    """Two requests that are not the same came under one key."""

    code = "IDEMPOTENCY_KEY_REUSED"


def receipt(user_id: ObjectId, resource: ResourceType, units: int, key: str) -> Receipt:
    """Raises Invalid for a key that is empty or too long."""
    if not 0 < len(key) <= _MAX_KEY:
        raise Invalid.field("idempotencyKey", f"must have 1 to {_MAX_KEY} characters")
    digest = hashlib.sha256(user_id.binary + key.encode(errors="surrogatepass")).digest()
    return Receipt(id=digest, user_id=user_id, resource=resource, units=units)


async def find(database: Database, asked: Receipt) -> bool:
    """Whether the same was used under the same key within a day. One command. Raises KeyReused when it was something else."""
    known = await database[RECEIPTS].find_one({"_id": asked.id})
    if known is None or known.created_at <= database.clock.now() - timedelta(seconds=KEEP_S):
        return False
    if (known.resource, known.units) != (asked.resource, asked.units):
        raise KeyReused(
            f"This idempotency key was used for {known.units} {known.resource}: use another for another request"
        )
    return True


async def keep(database: Database, used: Receipt) -> bool:
    """Remember a use; False when somebody else has remembered it first, so that it must not count again. Raises KeyReused."""
    try:
        await database[RECEIPTS].insert(used)
    except DocumentExists:
        if await find(database, used):
            return False
        # A day old, and MongoDB has not yet come to remove it.
        too_old = database.clock.now() - timedelta(seconds=KEEP_S)
        await database[RECEIPTS].delete({"_id": used.id, "createdAt": {"$lte": too_old}})
        return await keep(database, used)
    return True
