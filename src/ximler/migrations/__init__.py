"""The migrations of the data, one module each: `m0002_search_terms` brings the schema from version 1 to 2.

They are above the domains because a migration may need its domain's code. `database.migrating` runs them. `SCHEMA_VERSION` is
the version of the last one.
"""

from ximler.database.migrating import Migration
from ximler.migrations import m0002_search_terms

__all__ = ["MIGRATIONS"]

MIGRATIONS: tuple[Migration, ...] = (m0002_search_terms.MIGRATION,)
