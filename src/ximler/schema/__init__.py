"""The map of the database: one module per collection. No I/O.

`CATALOGUE` holds every `Collection` of this package: the specification's ten in its order, then Ximler's own
by name. A new module here is a new collection: validators, indexes, docs/schema.md, import rules, export and
erasure follow from it.
"""

import pkgutil
from importlib import import_module
from typing import Any

from ximler.schema.document import SPECIFIED_NAMES, Collection

__all__ = ["CATALOGUE", "SPECIFIED"]


def _collections() -> dict[str, Collection[Any]]:
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    values = (value for module in modules for value in vars(module).values())
    return {value.name: value for value in values if isinstance(value, Collection)}


_found = _collections()
SPECIFIED: tuple[Collection[Any], ...] = tuple(_found[name] for name in SPECIFIED_NAMES)
CATALOGUE: tuple[Collection[Any], ...] = (*SPECIFIED, *(c for _, c in sorted(_found.items()) if c.private))
