"""Patches by position that are operators of MongoDB:
of properties in objects, by names that no array has as an index.

The filter asserts all that the patch depends on: that each parent is an object, and that what is replaced or
removed exists. A patch that depends on more, such as the length of an array, is applied to the value
(`positional`), and so is one whose filter does not match, which then names the problem. Names are checked, so
that none becomes an operator.
"""

import re
from itertools import pairwise
from typing import Any, NamedTuple

import bson

from ximler.core.errors import Invalid
from ximler.database import mixed

__all__ = ["ByPath", "by_path"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
_MOST = 100  # paths of a patch
_DEEPEST = 50  # names of a path
_OBJECT, _EXISTS = "object", "exists"

Path = tuple[str, ...]


class ByPath(NamedTuple):
    """Conditions on `canvasData` and the operators that change it."""

    conditions: list[dict[str, Any]]
    operators: dict[str, dict[str, Any]]
    size_bytes: int  # that they add at most


def by_path(kind: str, change: Any) -> ByPath | None:
    """A JSON Patch or merge patch as one update; None for one that is not."""
    found = _of_operations(change) if kind == "patch" else _of_merge(change)
    if found is None:
        return None
    sets, unsets, needed = found
    paths = sorted([*sets, *unsets])
    if not 0 < len(paths) <= _MOST or not all(
        len(path) <= _DEEPEST and all(map(_NAME.fullmatch, path)) for path in paths
    ):
        return None
    if any(after[: len(before)] == before for before, after in pairwise(paths)):
        return None  # one is in another: their order matters
    try:
        for path, value in sets.items():
            mixed.check(value, ".".join(path), depth=2 + len(path))
        size = len(bson.encode({".".join(path): value for path, value in sets.items()}))
    except (Invalid, OverflowError):
        return None
    operators = {
        "$set": {_field(path): value for path, value in sets.items()},
        "$unset": {_field(path): "" for path in unsets},
    }
    conditions = [_condition(path, kind) for path, kind in sorted(needed)]
    return ByPath(conditions, operators, size)


def _of_operations(change: Any) -> tuple[dict[Path, Any], set[Path], set[tuple[Path, str]]] | None:
    sets: dict[Path, Any] = {}
    unsets: set[Path] = set()
    needed: set[tuple[Path, str]] = set()
    for operation in change if isinstance(change, list) else ():
        kind, pointer = (operation.get("op"), operation.get("path")) if isinstance(operation, dict) else (None, None)
        if kind not in ("add", "replace", "remove") or not isinstance(pointer, str) or pointer[:1] != "/":
            return None
        path = tuple(pointer.split("/"))[1:]
        if path in sets or path in unsets or (kind != "remove" and "value" not in operation):
            return None
        needed.add((path[:-1], _OBJECT))
        if kind != "add":
            needed.add((path, _EXISTS))
        if kind == "remove":
            unsets.add(path)
        else:
            sets[path] = operation["value"]
    return sets, unsets, needed


def _of_merge(change: Any) -> tuple[dict[Path, Any], set[Path], set[tuple[Path, str]]] | None:
    sets: dict[Path, Any] = {}
    unsets: set[Path] = set()
    needed: set[tuple[Path, str]] = set()
    pending: list[tuple[Path, Any]] = [((), change)]
    while pending:
        path, given = pending.pop()
        if not isinstance(given, dict) or not given:
            return None
        needed.add((path, _OBJECT))
        for name, value in given.items():
            if value is None:
                unsets.add((*path, name))
            elif isinstance(value, dict):
                pending.append(((*path, name), value))
            else:
                sets[(*path, name)] = value
    return sets, unsets, needed


def _condition(path: Path, kind: str) -> dict[str, Any]:
    """Of a path through an array, the type is an array: so all parents of an object are objects."""
    found = {"$type": f"${_field(path)}"}
    return {"$eq": [found, "object"]} if kind == _OBJECT else {"$ne": [found, "missing"]}


def _field(path: Path) -> str:
    return ".".join(("canvasData", *path))
