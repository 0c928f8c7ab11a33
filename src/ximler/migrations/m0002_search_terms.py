"""Rebuild the search terms of every project, so that letters like ł and scripts without spaces are found,
also in projects of other applications.
"""

from typing import Any

from pymongo import UpdateOne

from ximler.database import Database
from ximler.database.migrating import Migration, Step
from ximler.projects import search

__all__ = ["MIGRATION"]

_BATCH = 200


async def _batch(transaction: Database, place: dict[str, Any]) -> Step:
    found = await _texts(transaction, place.get("after"))
    changes = [UpdateOne({"_id": raw["_id"]}, {"$set": wanted}) for raw in found if (wanted := _wrong(raw)) is not None]
    if changes:
        await transaction.raw["projects"].bulk_write(changes, ordered=False, session=transaction.session)
    return Step(len(changes), {"after": found[-1]["_id"]} if len(found) == _BATCH else None)


async def _count(database: Database) -> int:
    wrong, after = 0, None
    while found := await _texts(database, after):
        wrong += sum(_wrong(raw) is not None for raw in found)
        after = found[-1]["_id"]
    return wrong


async def _texts(database: Database, after: Any) -> list[dict[str, Any]]:
    """Texts and terms in the order of `_id`, deleted projects included: they may be restored."""
    fields = {"name": 1, "description": 1, "searchTerms": 1, "searchKeys": 1, "createdAt": 1}
    where = {} if after is None else {"_id": {"$gt": after}}
    return await database.projects.aggregate(
        [{"$match": where}, {"$sort": {"_id": 1}}, {"$limit": _BATCH}, {"$project": fields}]
    )


def _wrong(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The project's correct terms and their keys, or None if it has them.

    None also for a list in place of `createdAt`: an index cannot have two lists of one document.
    """
    if isinstance(raw.get("createdAt"), list):
        return None
    terms = search.terms_of(raw)
    wanted = {"searchTerms": terms, "searchKeys": search.keys(terms)}
    return None if all(raw.get(name) == value for name, value in wanted.items()) else wanted


MIGRATION = Migration(version=2, name="0002_search_terms", safe=True, count=_count, batch=_batch)
