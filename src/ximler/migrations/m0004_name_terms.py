"""Mark the terms of names in every project, so that a search shows projects whose names match first.

The terms are built as in `m0002_search_terms`. A process of an earlier release that changes a project
meanwhile leaves its name unmarked: the project is found among those whose descriptions match.
"""

from ximler.database.migrating import Migration
from ximler.migrations import m0002_search_terms

__all__ = ["MIGRATION"]

MIGRATION = Migration(
    version=4,
    name="0004_name_terms",
    safe=True,
    count=m0002_search_terms.MIGRATION.count,
    batch=m0002_search_terms.MIGRATION.batch,
)
