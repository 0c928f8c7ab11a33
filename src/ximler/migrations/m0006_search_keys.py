"""Add the keys by which a search finds every project (`projects.search`), built with its terms as in
`m0002_search_terms`.

Until a project has keys, searches read it and compare its terms. If a process of an earlier release renames a
project that already has keys, the keys stay unchanged: a search may miss the project until its name or
description is saved again.
"""

from ximler.database.migrating import Migration
from ximler.migrations import m0002_search_terms

__all__ = ["MIGRATION"]

MIGRATION = Migration(
    version=6,
    name="0006_search_keys",
    safe=True,
    count=m0002_search_terms.MIGRATION.count,
    batch=m0002_search_terms.MIGRATION.batch,
)
