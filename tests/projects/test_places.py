"""Projects by place, on a real server: distances, boxes and polygons,
and what other applications store there."""

import random
from typing import Any

import pytest
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.projects import nearest, places, projects

BERLIN = {"longitude": 13.4, "latitude": 52.5}


async def place(database: Database, owner: Actor, name: str, longitude: float, latitude: float) -> ObjectId:
    """As another application writes it: without the quota of projects."""
    made = await database.raw["projects"].insert_one(
        {
            "userId": owner.user_id,
            "name": name,
            "createdAt": database.clock.now(),
            "location": {"type": "Point", "coordinates": [longitude, latitude]},
        }
    )
    return ObjectId(str(made.inserted_id))


async def names_within(database: Database, owner: Actor, **within: Any) -> set[str]:
    return {each.name for each in (await projects.page(database, owner, within=within)).items}


def polygon(*vertices: tuple[float, float]) -> list[dict[str, float]]:
    return [{"longitude": longitude, "latitude": latitude} for longitude, latitude in vertices]


async def test_a_location_is_stored_as_geojson_changed_and_cleared(database: Database, ada: Actor) -> None:
    made = await projects.create(database, ada, name="Office", location=BERLIN)
    raw = await database.raw["projects"].find_one({"_id": made.id})
    assert raw is not None
    assert raw["location"] == {"type": "Point", "coordinates": [13.4, 52.5]}
    changed = await projects.update(database, ada, made.id, {"location": {"longitude": 2.35, "latitude": 48.86}})
    assert places.place_of(changed.location) == {"longitude": 2.35, "latitude": 48.86}
    changed = await projects.update(database, ada, made.id, {"location": None})
    assert places.place_of(changed.location) is None


@pytest.mark.parametrize(
    ("place", "field"), [((200.0, 0.0), "location.longitude"), ((0.0, -90.5), "location.latitude")]
)
async def test_a_coordinate_out_of_range_is_refused_by_name(
    database: Database, ada: Actor, place: tuple[float, float], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await projects.create(database, ada, name="Nowhere", location=polygon(place)[0])
    assert list(refused.value.fields) == [field]


@pytest.mark.slow
async def test_the_nearest_come_first_and_pages_follow_the_distance(database: Database, ada: Actor, bob: Actor) -> None:
    chance = random.Random(5)
    # Many at equal distances: several on one place, and on both sides of the centre.
    spots = [(13.4 + chance.choice((-1, 1)) * chance.randrange(4) / 10, 52.5) for _ in range(25)]
    for number, spot in enumerate(spots):
        await place(database, ada, f"p{number}", *spot)
    await place(database, ada, "far", 2.35, 48.86)
    await place(database, bob, "not hers", 13.4, 52.5)
    await database.raw["projects"].insert_one({"userId": ada.user_id, "name": "without"})
    found: list[tuple[str, float]] = []
    after = None
    while True:
        page = await nearest.nearest(database, ada, {**BERLIN, "max_km": 100}, first=4, after=after)
        found += [(each.name, each.distance_km) for each in page.items]
        if not page.has_next:
            break
        after = page.end_cursor
    assert sorted(name for name, _ in found) == sorted(f"p{number}" for number in range(25))
    distances = [distance for _, distance in found]
    assert distances == sorted(distances)
    assert distances[0] == 0.0
    assert 20 < distances[-1] < 20.5
    with round_trips() as sent:
        everywhere = await nearest.nearest(database, ada, BERLIN, first=30)
    assert everywhere.items[-1].name == "far"
    assert round(everywhere.items[-1].distance_km) == 877
    assert len(sent) == 1
    with pytest.raises(Invalid):  # a cursor of another list
        await nearest.nearest(database, ada, BERLIN, after=(await projects.page(database, ada)).end_cursor)


async def test_boxes_mean_what_they_say_across_the_antimeridian(database: Database, ada: Actor) -> None:
    for name, *spot in (
        ("fiji", 178.4, -18.1),
        ("samoa", -172.1, -13.8),
        ("date line", 180, -16),
        ("perth", 115.9, -31.9),
    ):
        await place(database, ada, name, *spot)
    box = {"west": 170, "south": -20, "east": -170, "north": -10}
    assert await names_within(database, ada, box=box) == {"fiji", "samoa", "date line"}
    assert await names_within(database, ada, box=box | {"west": -180}) == {"samoa", "date line"}
    assert await names_within(database, ada, box={"west": -170, "south": -40, "east": 170, "north": 0}) == {"perth"}
    # A parallel, where the great circle between the corners would reach 1,900 km further north.
    await place(database, ada, "above", 0, 62)
    assert "above" not in await names_within(database, ada, box={"west": -80, "south": 0, "east": 80, "north": 60})
    near = {"longitude": 178, "latitude": -17}
    page = await nearest.nearest(database, ada, near, within={"box": box})
    assert [each.name for each in page.items] == ["fiji", "date line", "samoa"]


async def test_polygons_hold_what_is_inside_and_never_their_other_side(database: Database, ada: Actor) -> None:
    for name, *spot in (("berlin", 13.4, 52.5), ("paris", 2.35, 48.86), ("wellington", 174.8, -41.3)):
        await place(database, ada, name, *spot)
    germany = polygon((6, 47), (15, 47), (15, 55), (6, 55))
    assert await names_within(database, ada, polygon=germany) == {"berlin"}
    assert await names_within(database, ada, polygon=germany[::-1]) == {"berlin"}
    page = await nearest.nearest(database, ada, BERLIN, within={"polygon": germany})
    assert [each.name for each in page.items] == ["berlin"]
    large = polygon((-170, -80), (-60, -80), (60, -80), (170, -80), (170, 80), (60, 80), (-60, 80), (-170, 80))
    wide = polygon((-170, -80), (170, -80), (170, 80), (-170, 80))
    crossed = polygon((0, 0), (10, 10), (10, 0), (0, 10))
    for refused, why in ((large, "hemisphere"), (wide, "180 degrees"), (crossed, "cross"), (germany[:2], "vertices")):
        with pytest.raises(Invalid, match=why) as raised:
            await names_within(database, ada, polygon=refused)
        assert list(raised.value.fields) == ["within.polygon"]


@pytest.mark.parametrize(
    "location", [{"coordinates": []}, {"type": "Point", "coordinates": []}, {}, None, {"type": "Point"}, "Berlin"]
)
async def test_an_empty_location_of_another_application_is_none(database: Database, ada: Actor, location: Any) -> None:
    await database.raw["projects"].insert_one({"userId": ada.user_id, "name": "theirs", "location": location})
    (theirs,) = (await projects.page(database, ada)).items
    assert places.place_of(theirs.location) is None
    assert not (await nearest.nearest(database, ada, BERLIN)).items
    assert not await names_within(database, ada, box={"west": -180, "south": -90, "east": 180, "north": 90})
