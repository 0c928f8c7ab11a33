"""A small drawing of a canvas, as SVG, from the records of drawing programs such as Excalidraw and tldraw.

Canvases have anything in them. Only finite numbers, colours in hexadecimal digits and escaped text go into
the SVG, and only so many shapes, points, pixels and letters that it is rendered in a second. The rest, and
records that are not understood, are left out.
"""

import math
import re
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

__all__ = ["SIDE", "svg"]

SIDE = 512  # pixels
_MOST_RECORDS = 20_000  # that are looked at
_MOST_SHAPES = 1000
_MOST_POINTS = 48  # of a line, and fewer where there are many lines
_ALL_POINTS = 6000
_MOST_DRAWN = 300_000  # pixels of lines, which take 3 µs each; surfaces count as such
_PER_LINE = 60  # pixels of a surface take as long as one of a line, of a polygon that crosses itself fewer
_MOST_LETTERS = 3000  # which take up to 0.15 ms each
_FARTHEST = 1e7
_TEXT = 200  # characters
_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3,4}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})")
_NAMED = {
    "black": "#1d1d1d", "grey": "#9fa8b2", "violet": "#ae3ec9", "light-violet": "#e085f4", "blue": "#4465e9",
    "light-blue": "#4ba1f1", "yellow": "#f1ac4b", "orange": "#e16919", "green": "#099268", "light-green": "#4cb05e",
    "red": "#e03131", "light-red": "#f87777", "white": "#ffffff",
}  # fmt: skip  # tldraw's
_LINES = frozenset({"line", "arrow", "freedraw", "draw", "highlight"})
_ROUND = frozenset({"ellipse", "oval", "cloud"})
_NOTHING = frozenset({"group", "selection", "binding"})
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not allowed in XML

Point = tuple[float, float]


class _Shape(NamedTuple):
    kind: str
    corner: Point
    size: Point
    points: list[Point]
    stroke: str
    fill: str
    text: str


def svg(canvas: Any, listed: str = "elements") -> str | None:
    """The drawing, at most `SIDE` pixels wide and high; None for a canvas without a shape. `listed` is the
    canvas's property with the list of records.
    """
    shapes: list[_Shape] = []
    for record in _records(canvas, listed):
        shape = _shape(record)
        if shape is not None:
            shapes.append(shape)
            if len(shapes) >= _MOST_SHAPES:
                break
    if not shapes:
        return None
    lines = sum(bool(shape.points) for shape in shapes)
    shapes = [shape._replace(points=_thinned(shape.points, _ALL_POINTS // max(lines, 1))) for shape in shapes]
    corners = [point for shape in shapes for point in (*shape.points, shape.corner, _end(shape))]
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    top, bottom = min(y for _, y in corners), max(y for _, y in corners)
    scale = SIDE * 0.9 / max(right - left, bottom - top, 100.0)
    width, height = (max(1, round(scale * (end - start) + SIDE * 0.1)) for start, end in ((left, right), (top, bottom)))

    def place(point: Point) -> Point:
        return scale * (point[0] - left) + SIDE * 0.05, scale * (point[1] - top) + SIDE * 0.05

    drawn = "".join(_drawn(shape, place, scale) for shape in _bounded(shapes, scale))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{drawn}</svg>'
    )


def _records(canvas: Any, listed: str) -> Iterator[Any]:
    if isinstance(canvas, list):
        yield from canvas[:_MOST_RECORDS]
    if not isinstance(canvas, dict):
        return
    for holder in (canvas, canvas.get("document"), canvas.get("snapshot")):
        found = holder.get(listed) or holder.get("store") or holder.get("records") if isinstance(holder, dict) else None
        if isinstance(found, dict):
            found = list(found.values())
        if isinstance(found, list):
            yield from found[:_MOST_RECORDS]
            return


def _shape(record: Any) -> _Shape | None:
    if not isinstance(record, dict) or record.get("isDeleted") is True:
        return None
    props = record.get("props")
    more: dict[str, Any] = props if isinstance(props, dict) else {}
    kind, x, y = record.get("type"), _number(record.get("x")), _number(record.get("y"))
    if not isinstance(kind, str) or kind in _NOTHING or x is None or y is None:
        return None
    width = _number(record.get("width", more.get("w")))
    height = _number(record.get("height", more.get("h")))
    points: list[Point] = []
    if kind in _LINES:
        points = [(x + dx, y + dy) for dx, dy in _thinned(_points(record, more), _MOST_POINTS)]
        if len(points) < 2:
            return None
    elif width is None or height is None:
        if kind != "text":
            return None
        width, height = width or 100.0, height or 24.0
    text, geometry = record.get("text", more.get("text")), more.get("geo")
    return _Shape(
        kind=geometry if isinstance(geometry, str) else kind,
        corner=(x, y),
        size=(0.0, 0.0) if points else (width or 0.0, height or 0.0),
        points=points,
        stroke=_colour(record.get("strokeColor", more.get("color"))) or "#1e1e1e",
        fill=_colour(record.get("backgroundColor")) or "none",
        text=_UNPRINTABLE.sub("", text[:_TEXT]) if isinstance(text, str) else "",
    )


def _points(record: dict[str, Any], more: dict[str, Any]) -> list[Point]:
    found: list[Point] = []
    candidates: list[Any] = [record.get("points"), more.get("points"), (more.get("start"), more.get("end"))]
    segments = more.get("segments")
    if isinstance(segments, list):
        candidates += [each.get("points") for each in segments[:_MOST_SHAPES] if isinstance(each, dict)]
    for candidate in candidates:
        given = list(candidate.values()) if isinstance(candidate, dict) else candidate
        if not isinstance(given, list | tuple):
            continue
        for each in given[:: len(given) // 500 + 1]:
            if isinstance(each, list) and len(each) >= 2:
                pair = each[0], each[1]
            elif isinstance(each, dict):
                pair = each.get("x"), each.get("y")
            else:
                continue
            x, y = _number(pair[0]), _number(pair[1])
            if x is not None and y is not None:
                found.append((x, y))
        if len(found) >= 2:
            break
    return found


def _thinned(points: list[Point], most: int) -> list[Point]:
    if len(points) <= most:
        return points
    step = (len(points) - 1) / (most - 1)
    return [points[round(n * step)] for n in range(most)]


def _end(shape: _Shape) -> Point:
    return shape.corner[0] + shape.size[0], shape.corner[1] + shape.size[1]


def _bounded(shapes: list[_Shape], scale: float) -> Iterator[_Shape]:
    """The shapes that are drawn in time, at this scale, the first ones before others."""
    pixels, letters = float(_MOST_DRAWN), _MOST_LETTERS
    for shape in shapes:
        xs, ys = zip(*(shape.points or (shape.corner, _end(shape))), strict=True)
        width, height = scale * (max(xs) - min(xs)), scale * (max(ys) - min(ys))
        length = scale * sum(map(math.dist, shape.points, shape.points[1:])) if shape.points else 2 * (width + height)
        surface = 0.0 if shape.fill == "none" else width * height * (1 + len(shape.points) / 16)
        cost = 0.0 if shape.kind == "text" else length + surface / _PER_LINE
        if cost <= pixels:
            pixels -= cost
            text = shape.text[:letters] if _letter(shape, scale) >= 3 else ""  # not to be read
            letters -= len(text)
            yield shape._replace(text=text)


def _drawn(shape: _Shape, place: Any, scale: float) -> str:
    line = f'stroke="{shape.stroke}" stroke-width="2" fill="{shape.fill}"'
    if shape.points:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, shape.points))
        return f'<polyline points="{path}" {line} stroke-linecap="round" stroke-linejoin="round"/>'
    (x1, y1), (x2, y2) = place(shape.corner), place(_end(shape))
    left, top, width, height = min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)
    drawn = ""
    if shape.kind in _ROUND:
        drawn = (
            f'<ellipse cx="{left + width / 2:.1f}" cy="{top + height / 2:.1f}" rx="{width / 2:.1f}" '
            f'ry="{height / 2:.1f}" {line}/>'
        )
    elif shape.kind == "diamond":
        middle_x, middle_y = left + width / 2, top + height / 2
        corners = ((middle_x, top), (left + width, middle_y), (middle_x, top + height), (left, middle_y))
        drawn = f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" {line}/>'
    elif shape.kind != "text":
        drawn = f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" {line}/>'
    return drawn + _text(shape, left, top, scale)


def _letter(shape: _Shape, scale: float) -> float:
    """The size of a shape's letters, in pixels."""
    lines = min(shape.text.count("\n") + 1, 10)
    size = max(abs(shape.size[1]) * scale / lines * 0.8, 1.0)
    return min(size, SIDE / 4 if shape.kind == "text" else 20 * scale)


def _text(shape: _Shape, left: float, top: float, scale: float) -> str:
    size = _letter(shape, scale)
    return "".join(
        f'<text x="{left + size / 4:.1f}" y="{top + size * (n + 1):.1f}" font-size="{size:.1f}" '
        f'font-family="sans-serif" fill="{shape.stroke}">{escape(line)}</text>'
        for n, line in enumerate(shape.text.split("\n")[:10])
        if line.strip()
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if abs(value) <= _FARTHEST else None


def _colour(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return value if _COLOUR.fullmatch(value) else _NAMED.get(value)
