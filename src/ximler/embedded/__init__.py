"""The MongoDB that comes along: find a `mongod`, start it as a replica set on a data directory, supervise it.

Knows no collection: `ximler.database` connects to the URI that `server` returns.
"""
