"""The migrations of the data, one module each: `m0002_search_terms` brings the schema from version 1 to 2.

They are above the domains because a migration may need its domain's code. `database.migrating` runs them.
`SCHEMA_VERSION` is the version of the last one. A new module here is a new migration.
"""

import pkgutil
from importlib import import_module

from ximler.database.migrating import Migration

__all__ = ["MIGRATIONS"]

MIGRATIONS: tuple[Migration, ...] = tuple(
    import_module(f"{__name__}.{name}").MIGRATION
    for name in sorted(each.name for each in pkgutil.iter_modules(__path__))
)
