"""The embedded server: a MongoDB replica set on this machine, for as long as its owner lives.

It keeps everything below `<data directory>/mongodb`, which only its user may read:

    server.lock     locked by the owner while it lives, and says who that is      server.json    passwords and ports
    keyfile         the members' shared secret                                    data0, …       one member's data
    mongod0.log, …  what mongod says (bounded)                                    mongod0.out    what it prints

One owner per data directory; others `attach`. Everything heals on the next start: a first start that was interrupted
anywhere, a mongod that outlived its supervisor, a port that somebody took, lost passwords. Bootstrapping signs in as
`__system` with the key file rather than by MongoDB's localhost exception, which is switched off: it would let any local
user be the first, and cannot be taken up again where an interrupted start left it.

Not here: your own server (MONGODB_URI), which `connection` reaches alike.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import msgspec
from pymongo import AsyncMongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from ximler.core.errors import Invalid
from ximler.database.mongod import (
    DataDirInUse,
    DataDirUnusable,
    DiskFull,
    EmbeddedServerError,
    Mongod,
    MongodMissing,
    MongodUnusable,
    PortInUse,
    disown,
    end_stray,
    find_mongod,
    own,
    unusable,
)

__all__ = [
    "DataDirInUse",
    "DataDirUnusable",
    "DiskFull",
    "EmbeddedServerError",
    "Endpoint",
    "MongodMissing",
    "MongodUnusable",
    "PortInUse",
    "Server",
    "attach",
    "find",
    "find_mongod",
    "running",
    "start",
]

type Log = Callable[..., object]

_SET = "ximler"
_USER = "ximler"
_ADMIN = "admin"
_ROLES = {
    _ADMIN: ["root"],
    _USER: ["readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor"],
}
_ATTEMPTS = 5
_MIN_FREE_BYTES = 100_000_000
_NOT_YET_INITIALIZED, _ALREADY_INITIALIZED, _RECONFIGURING, _USER_EXISTS = 94, 23, 109, 51003


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where an embedded server is to be reached. `uri` and `admin_uri` contain passwords."""

    uri: str
    admin_uri: str
    ports: tuple[int, ...]
    pids: tuple[int, ...]
    data_dir: Path
