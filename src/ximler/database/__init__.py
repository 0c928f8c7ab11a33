"""The database: connection, typed collections, index sync, validators, seeds.

Owns how documents are read and written, not what they mean: that is the domains'. `connect` gives a `Database`.
"""

from ximler.database.connection import Database, connect

__all__ = ["Database", "connect"]
