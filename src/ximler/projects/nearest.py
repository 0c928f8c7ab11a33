"""The actor's projects by their distance from a place, nearest first.
Distances are kilometres along the sphere."""

from collections.abc import Mapping
from typing import Any

import msgspec
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import decode_distance, encode_distance
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.pages import check_size
from ximler.projects import places
from ximler.projects.projects import ProjectSummary, matching
from ximler.schema.project import LOCATED

__all__ = ["NearProject", "nearest"]

Place = tuple[float, ObjectId]
_FIELDS = dict.fromkeys(ProjectSummary.__struct_encode_fields__, 1)
FARTHEST_KM = 20_100.0  # a little more than half the circumference


class NearProject(ProjectSummary, kw_only=True):
    """A project and its distance."""

    distance_km: float


async def nearest(
    database: Database,
    actor: Actor,
    near: Mapping[str, Any],
    *,
    first: int = 20,
    after: str | None = None,
    **wanted: Any,
) -> Page[NearProject]:
    """The actor's projects, nearest first, at most `max_km` away;
    `wanted` are the arguments of `projects.matching`.

    Raises Invalid. Pages by keyset of distance and id. One command; more where many projects are equally far.
    """
    check_size(first)
    centre = places.stored(near, "near")
    farthest = near.get("max_km")
    if farthest is not None and not 0 < farthest <= FARTHEST_KM:
        raise Invalid.field("near.maxKm", f"{farthest} is not between 0 and {FARTHEST_KM:,.0f}")
    where = {**matching(actor, **wanted), **LOCATED}
    position = None if after is None else decode_distance(after)
    farthest_m = farthest * 1000 if farthest is not None else None
    limit = first + (2 if position is None else 3)  # with the last of the page before
    while True:
        rows = await _by_distance(database, where, centre, position, farthest_m, limit)
        found = [row for row in rows if position is None or _order(row) > position]
        if len(rows) < limit or len(found) >= first + 2:
            break
        limit *= 4  # many are as far as the last of the page before
    if len(rows) == limit and found[first - 1]["distanceM"] == rows[-1]["distanceM"]:
        # Those of one distance are in no order, and there may be more of them.
        found = await _in_order(database, where, centre, position, rows[-1]["distanceM"], first + 1)
    found.sort(key=_order)
    items, cursors = [], []
    for raw in found[:first]:
        metres, cursor_id = raw.pop("distanceM"), raw["_id"]
        for each in database.projects.readable([raw], into=ProjectSummary):
            items.append(NearProject(**msgspec.structs.asdict(each), distance_km=metres / 1000))
            cursors.append(encode_distance(metres, cursor_id))
    return Page(items, cursors, has_next=len(found) > first)


async def _by_distance(
    database: Database,
    where: Mapping[str, Any],
    centre: dict[str, Any] | None,
    position: Place | None,
    farthest_m: float | None,
    limit: int,
) -> list[dict[str, Any]]:
    """The nearest from a distance on. By `find`, which stops at its limit:
    `$geoNear` reads thousands ahead of `$limit`."""
    near: dict[str, Any] = {"$geometry": centre}
    if farthest_m is not None:
        near["$maxDistance"] = farthest_m
    if position is not None:
        near["$minDistance"] = _below(position[0])
    return await database.projects.rows(
        {**where, "location": {"$nearSphere": near}},
        projection={**_FIELDS, "distanceM": {"$meta": "geoNearDistance"}},
        limit=limit,
    )


async def _in_order(
    database: Database,
    where: Mapping[str, Any],
    centre: dict[str, Any] | None,
    position: Place | None,
    until_m: float,
    limit: int,
) -> list[dict[str, Any]]:
    """Those up to a distance by distance and id, of which many may be equally far."""
    finding: dict[str, Any] = {"near": centre, "key": "location", "spherical": True, "distanceField": "distanceM"}
    finding |= {"query": {**where, "deletedAt": None}, "maxDistance": _above(until_m)}
    bounds: list[dict[str, Any]] = [{"distanceM": {"$lte": until_m}}]
    if position is not None:
        metres, last = position
        finding["minDistance"] = _below(metres)
        bounds.append({"$or": [{"distanceM": {"$gt": metres}}, {"distanceM": metres, "_id": {"$gt": last}}]})
    stages: list[dict[str, Any]] = [{"$geoNear": finding}, {"$match": {"$and": bounds}}]
    stages += [{"$sort": {"distanceM": 1, "_id": 1}}, {"$limit": limit}, {"$project": {**_FIELDS, "distanceM": 1}}]
    return await database.projects.aggregate(stages)


def _order(row: dict[str, Any]) -> Place:
    return row["distanceM"], row["_id"]


def _below(metres: float) -> float:
    return max(metres - (_above(metres) - metres), 0)


def _above(metres: float) -> float:
    """A bound that rounding does not put below the distance itself."""
    return metres * (1 + 1e-9) + 0.001
