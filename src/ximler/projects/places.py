"""The location of a project, and areas. Pure.

`location` is a GeoJSON point of WGS 84, as a Mongoose application stores it. Anything else there, as the
empty point that Mongoose writes by default, reads as no location.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ximler.core.errors import Invalid
from ximler.schema.project import LOCATED

__all__ = ["area", "place_of", "stored"]

_MOST_VERTICES = 500
Vertex = tuple[float, float]


def place_of(location: Any) -> dict[str, float] | None:
    """Longitude and latitude of a stored point, None for anything else."""
    pair = location.get("coordinates") if isinstance(location, Mapping) and location.get("type") == "Point" else None
    if not isinstance(pair, list) or len(pair) < 2 or not all(isinstance(part, int | float) for part in pair[:2]):
        return None
    return {"longitude": float(pair[0]), "latitude": float(pair[1])}


def stored(place: Mapping[str, float] | None, field: str = "location") -> dict[str, Any] | None:
    """The GeoJSON point of a longitude and latitude. Raises Invalid, which names the coordinate."""
    if place is None:
        return None
    longitude = _degrees(f"{field}.longitude", place["longitude"], 180)
    latitude = _degrees(f"{field}.latitude", place["latitude"], 90)
    return {"type": "Point", "coordinates": [longitude, latitude]}


def area(within: Mapping[str, Any]) -> dict[str, Any]:
    """The filter of the projects in a box or a polygon. Raises Invalid.

    A box whose west is greater than its east crosses the antimeridian. A polygon must be smaller than a
    hemisphere: MongoDB would look on its other side.
    """
    box, polygon = within.get("box"), within.get("polygon")
    if (box is None) == (polygon is None):
        raise Invalid.field("within", "needs either a box or a polygon")
    return {"$and": [_in_box(box) if box is not None else _in_polygon(polygon or [])]}


def _in_box(box: Mapping[str, float]) -> dict[str, Any]:
    west, east = (_degrees(f"within.box.{side}", box[side], 180) for side in ("west", "east"))
    south, north = (_degrees(f"within.box.{side}", box[side], 90) for side in ("south", "north"))
    if south > north:
        raise Invalid.field("within.box.south", f"{south} is north of {north}")
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    if any(180.0 in span for span in spans):
        spans.append((-180.0, -180.0))  # the same meridian
    if any(-180.0 in span for span in spans):
        spans.append((180.0, 180.0))
    # Comparisons, because the edges of a polygon are great circles: they leave the parallels of a box.
    longitudes = [{"location.coordinates.0": {"$gte": low, "$lte": high}} for low, high in spans]
    return {
        **LOCATED,
        "location.type": "Point",
        "location.coordinates.1": {"$gte": south, "$lte": north},
        "$or": longitudes,
    }


def _in_polygon(vertices: list[Mapping[str, float]]) -> dict[str, Any]:
    field = "within.polygon"
    if not 3 <= len(vertices) <= _MOST_VERTICES:
        raise Invalid.field(field, f"needs between 3 and {_MOST_VERTICES} vertices, and has {len(vertices)}")
    ring: list[Vertex] = []
    for index, each in enumerate(vertices):
        longitude = _degrees(f"{field}.{index}.longitude", each["longitude"], 180)
        ring.append((longitude, _degrees(f"{field}.{index}.latitude", each["latitude"], 90)))
    if ring[0] != ring[-1]:
        ring.append(ring[0])
    for (west, _), (east, _) in pairwise(ring):
        if abs(east - west) >= 180:
            raise Invalid.field(
                field, f"the edge from {west} to {east} spans 180 degrees or more: add a vertex, or divide the polygon"
            )
    if abs(math.fsum(_area(start, end) for start, end in pairwise(ring))) >= 2 * math.pi:
        raise Invalid.field(field, "covers a hemisphere or more: divide it, or use a box")
    return {
        **LOCATED,
        "location": {"$geoWithin": {"$geometry": {"type": "Polygon", "coordinates": [[list(each) for each in ring]]}}},
    }


def _area(start: Vertex, end: Vertex) -> float:
    """Signed area on the unit sphere between an edge and the equator (Girard's theorem)."""
    turn = math.tan(math.radians(end[0] - start[0]) / 2)
    south, north = math.tan(math.radians(start[1]) / 2), math.tan(math.radians(end[1]) / 2)
    return 2 * math.atan2(turn * (south + north), 1 + south * north)


def _degrees(field: str, degrees: Any, most: int) -> float:
    if isinstance(degrees, bool) or not isinstance(degrees, int | float) or not -most <= degrees <= most:
        raise Invalid.field(field, f"{degrees} is not between -{most} and {most} degrees")
    return float(degrees)
