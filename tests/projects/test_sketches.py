"""Drawings of canvases that have anything in them."""

from typing import Any
from xml.etree import ElementTree as ET

import pytest
import resvg_py
from hypothesis import given, settings, strategies

from ximler.projects import sketches

RECT = {"type": "rectangle", "x": 0, "y": 0, "width": 100, "height": 50}
SVG = "{http://www.w3.org/2000/svg}"


def _shapes(canvas: Any, listed: str = "elements") -> list[str]:
    drawn = sketches.svg(canvas, listed)
    if drawn is None:
        return []
    assert bytes(resvg_py.svg_to_bytes(svg_string=drawn, skip_system_fonts=True)).startswith(b"\x89PNG")
    return [each.tag.removeprefix(SVG) for each in ET.fromstring(drawn)][1:]


@pytest.mark.parametrize(
    ("canvas", "shapes"),
    [
        ({"elements": [None, {"type": "freedraw", "points": None}, RECT]}, ["rect"]),
        ({"elements": [{**RECT, "type": "ellipse"}, {**RECT, "type": "diamond"}]}, ["ellipse", "polygon"]),
        ({"elements": [{"type": "arrow", "x": 1, "y": 2, "points": [[0, 0], [5, None], [9, 9]]}]}, ["polyline"]),
        ({"elements": [{**RECT, "isDeleted": True}, {**RECT, "width": float("nan")}, {**RECT, "x": 1e300}]}, []),
        ({"elements": [{**RECT, "text": "<script>&\x00"}]}, ["rect", "text"]),
        ({"shapes": [RECT]}, []),
        ([RECT, RECT], ["rect", "rect"]),
        (
            {"store": {"shape:a": {"type": "geo", "x": 1, "y": 1, "props": {"geo": "ellipse", "w": 9, "h": 9}}}},
            ["ellipse"],
        ),
        (
            {
                "document": {
                    "store": {
                        "page": {"typeName": "page"},
                        "shape:b": {
                            "type": "draw",
                            "x": 0,
                            "y": 0,
                            "props": {"color": "red", "segments": [{"points": [{"x": 0, "y": 0}, {"x": 5, "y": 9}]}]},
                        },
                    }
                }
            },
            ["polyline"],
        ),
        ({}, []),
        (None, []),
    ],
)
def test_what_is_drawn(canvas: Any, shapes: list[str]) -> None:
    assert _shapes(canvas) == shapes


def test_the_list_is_the_one_that_the_project_names() -> None:
    assert _shapes({"shapes": [RECT], "elements": []}, "shapes") == ["rect"]


def test_nothing_but_numbers_colours_and_escaped_text_is_drawn() -> None:
    evil = '"/><image href="file:///etc/passwd"/><rect x="'
    record = {
        **RECT,
        "strokeColor": evil,
        "backgroundColor": "url(http://x)",
        "text": evil,
        "type": evil,
        "angle": evil,
    }
    drawn = sketches.svg({"elements": [record]})
    assert drawn is not None
    root = ET.fromstring(drawn)
    assert [each.tag.removeprefix(SVG) for each in root] == ["rect", "rect", "text"]
    assert root[2].text == evil
    assert {name for each in root for name in each.attrib} <= {
        "x", "y", "width", "height", "stroke", "stroke-width", "fill", "font-size", "font-family",
    }  # fmt: skip


values = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=9),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(
            strategies.sampled_from(
                "type x y width height points props text w h geo segments store id start end".split()
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
records = strategies.fixed_dictionaries(
    {
        "type": strategies.sampled_from("rectangle freedraw text arrow draw geo".split()),
        "x": strategies.just(1),
        "y": values,
    },
    optional=dict.fromkeys("width height points props text strokeColor".split(), values),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(strategies.dictionaries(strategies.just("elements"), strategies.lists(records | values, max_size=5)) | values)
def test_any_canvas_is_drawn_or_empty(canvas: Any) -> None:
    _shapes(canvas)


@pytest.mark.slow
def test_a_large_canvas_is_thinned() -> None:
    stroke = {"type": "freedraw", "x": 0, "y": 0, "points": [[n % 700, n * 7 % 500] for n in range(30_000)]}
    drawn = sketches.svg({"elements": [stroke] * 5000})
    assert drawn is not None
    assert len(drawn) < 2_000_000
    assert _shapes({"elements": [stroke]}) == ["polyline"]


def test_pixels_and_letters_are_bounded() -> None:
    large = {**RECT, "type": "ellipse", "width": 400, "height": 400, "backgroundColor": "#ff000080"}
    small = {**RECT, "width": 4, "height": 4}
    shown = _shapes({"elements": [*[large] * 999, small]})
    assert (len(shown) < 65, shown[-1]) == (True, "rect")
    scribble = {"type": "line", "x": 0, "y": 0, "points": [[n % 2 * 400, n * 8] for n in range(48)]}
    assert len(_shapes({"elements": [scribble] * 125})) < 50
    drawn = sketches.svg({"elements": [{**large, "type": "text", "text": "a\n" * 100}] * 999})
    assert drawn is not None
    assert drawn.count(">a<") < 1500
