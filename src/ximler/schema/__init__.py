"""The map of the database: one module per collection. No I/O.

`CATALOGUE` holds every `Collection`: the specification's ten in its order, then Ximler's own and those of
extensions by name. A new module here is a new collection: validators, indexes, docs/schema.md, import rules,
export and erasure follow from it.
"""

import pkgutil
from importlib import import_module
from typing import Any

from ximler.core import extensions
from ximler.schema.document import SPECIFIED_NAMES, Collection

__all__ = ["CATALOGUE", "SPECIFIED"]


def _collections() -> dict[str, Collection[Any]]:
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found: dict[str, Collection[Any]] = {}
    for module in [*modules, *extensions.modules("schema")]:
        for value in vars(module).values():
            if isinstance(value, Collection) and found.setdefault(value.name, value) is not value:
                raise ValueError(f"{module.__name__} defines the collection {value.name!r}, which exists already")
    return found


_found = _collections()
SPECIFIED: tuple[Collection[Any], ...] = tuple(_found[name] for name in SPECIFIED_NAMES)
CATALOGUE: tuple[Collection[Any], ...] = (*SPECIFIED, *(c for _, c in sorted(_found.items()) if c.private))
