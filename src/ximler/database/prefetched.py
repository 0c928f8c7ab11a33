"""Documents that were read before a transaction, for its body to find instead of reading them again.

    async def body(transaction: Database) -> None:
        prefetched.give(transaction, BILLING_ACCOUNTS, raw)
        await step(transaction)

`find_one` by its `_id` returns a given document, until the transaction sends a command to its collection. Any
other query is such a command, and so is one that the document does not match. The server does not notice if a
given document has changed since it was read: an update of the transaction must have a guard that fails then,
and the body must not be repeated with it.
"""

from collections.abc import Awaitable, Mapping
from copy import deepcopy
from typing import Any

from ximler.database.collection import TypedCollection
from ximler.database.connection import Database
from ximler.database.pages import T
from ximler.database.reading import D, Filter
from ximler.schema.document import Collection

__all__ = ["give"]


def give(transaction: Database, spec: Collection[D], raw: Mapping[str, Any]) -> None:
    """A document, as the driver read it. One of each collection, before the transaction's first command."""
    collection = _Prefetched(
        spec, transaction.raw[spec.name], transaction.clock, transaction.session, transaction.forget
    )
    collection.document = raw
    transaction._collections[spec.name] = collection  # noqa: SLF001 (part of this package)


class _Prefetched(TypedCollection[D]):
    __slots__ = ("document",)
    document: Mapping[str, Any] | None

    async def find_one(self, where: Filter, *, deleted: bool = False, **options: Any) -> Any:
        given = self.document
        final = self._where(where, deleted)
        if given is None or options or "_id" not in where or not all(_has(given, *each) for each in final.items()):
            return await super().find_one(where, deleted=deleted, **options)
        return self._codec.decode(deepcopy(dict(given)))  # decoding consumes it

    async def _run(self, operation: Awaitable[T], *, sent: Any = ()) -> T:
        self.document = None
        return await super()._run(operation, sent=sent)


def _has(document: Mapping[str, Any], name: str, condition: Any) -> bool:
    """False also for conditions that only the server can decide."""
    if isinstance(condition, Mapping):
        return condition.keys() == {"$in"} and document.get(name) in condition["$in"]
    return name in document and document[name] == condition
