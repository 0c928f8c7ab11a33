"""The embedded MongoDB: finds a `mongod`, starts it as a replica set on a data directory, and supervises it.

Knows no collections: `ximler.database` connects to the URI that `server` returns.
"""
