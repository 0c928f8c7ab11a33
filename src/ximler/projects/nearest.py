"""The actor's projects by their distance from a place, nearest first. Distances are kilometres along the sphere."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import decode_distance, encode_distance
from ximler.database import Database
from ximler.database.collection import Page
from ximler.database.reading import check_size
from ximler.projects import places
from ximler.projects.projects import ProjectSummary, matching
from ximler.schema.project import LOCATED

__all__ = ["NearProject", "nearest"]

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
    """The actor's projects, nearest first, at most `max_km` away; `wanted` are the arguments of `projects.matching`.

    Raises Invalid. Pages by keyset of distance and id. One command; two where projects of equal distance are on two pages.
    """
    check_size(first)
    centre = places.stored(near, "near")
    farthest = near.get("max_km")
    if farthest is not None and not 0 < farthest <= FARTHEST_KM:
        raise Invalid.field("near.maxKm", f"{farthest} is not between 0 and {FARTHEST_KM:,.0f}")
    where = {**matching(actor, **wanted), "deletedAt": None, **LOCATED}
    position = None if after is None else decode_distance(after)

    def stages(*, until: float | None, sorting: bool) -> list[dict[str, Any]]:
        finding: dict[str, Any] = {
            "near": centre, "key": "location", "spherical": True, "query": where, "distanceField": "distanceM"
        }  # fmt: skip
        reach = farthest * 1000 if farthest is not None else None
        if until is not None:
            reach = _above(until)
        if reach is not None:
            finding["maxDistance"] = reach
        beyond: list[dict[str, Any]] = []
        if position is not None:
            metres, last = position
            finding["minDistance"] = max(metres - (_above(metres) - metres), 0)
            beyond = [
                {"$match": {"$or": [{"distanceM": {"$gt": metres}}, {"distanceM": metres, "_id": {"$gt": last}}]}}
            ]
        if until is not None:
            beyond.append({"$match": {"distanceM": {"$lte": until}}})
        order: list[dict[str, Any]] = [{"$sort": {"distanceM": 1, "_id": 1}}] if sorting else []
        fields = dict.fromkeys((*ProjectSummary.__struct_encode_fields__, "distanceM"), 1)
        return [{"$geoNear": finding}, *beyond, *order, {"$limit": first + 2}, {"$project": fields}]

    found = await database.projects.aggregate(stages(until=None, sorting=False))
    if len(found) == first + 2 and found[first - 1]["distanceM"] == found[-1]["distanceM"]:
        # Those of this distance are in no order, and there may be more of them.
        found = await database.projects.aggregate(stages(until=found[-1]["distanceM"], sorting=True))
    found.sort(key=lambda raw: (raw["distanceM"], raw["_id"]))
    items, cursors = [], []
    for raw in found[:first]:
        metres, cursor_id = raw.pop("distanceM"), raw["_id"]
        for each in database.projects.readable([raw], into=ProjectSummary):
            items.append(NearProject(**msgspec.structs.asdict(each), distance_km=metres / 1000))
            cursors.append(encode_distance(metres, cursor_id))
    return Page(items, cursors, has_next=len(found) > first)


def _above(metres: float) -> float:
    """A bound that rounding does not put below the distance itself."""
    return metres * (1 + 1e-9) + 0.001
