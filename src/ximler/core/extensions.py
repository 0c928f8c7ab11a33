"""Packages of applications that extend Ximler: those with an entry point in the group `ximler.extensions`.

    [project.entry-points."ximler.extensions"]
    bookmarks = "ximler_bookmarks"

The value names the package. Its modules `schema`, `graphql`, `http` and `jobs`, those that exist, are
imported where Ximler collects its own of the kind. docs/extending.md explains them. An extension is code of
the installation's operator: nothing is isolated, and an error while it is imported ends the process.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

__all__ = ["modules", "packages"]

_GROUP = "ximler.extensions"


@cache
def packages() -> tuple[str, ...]:
    """The names of the installed packages, sorted."""
    return tuple(sorted({found.value for found in entry_points(group=_GROUP)}))


def modules(kind: Literal["schema", "graphql", "http", "jobs"]) -> list[ModuleType]:
    """The modules of this kind, in the order of their packages."""
    names = [f"{package}.{kind}" for package in packages()]
    return [import_module(name) for name in names if find_spec(name) is not None]
