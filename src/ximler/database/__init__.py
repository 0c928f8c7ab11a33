"""The database: connection, typed collections, index sync, validators, seeds.

Owns how documents are read and written; the domains own their meaning. `connect` returns a `Database`.
"""

from ximler.database.connection import Database, connect

__all__ = ["Database", "connect"]
