"""The environment of topics: a MongoDB, the thoroughness, and a description of the machine."""

import os
import platform
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import structlog
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from ximler import __version__
from ximler import setup as ximler_setup
from ximler.core import logs
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.embedded import server

__all__ = ["Setup", "facts", "scratch", "setup", "silence"]

_PACKAGES = ("pymongo", "msgspec", "beanie", "pydantic", "mongoengine", "graphql-core", "uvloop")


class Setup(msgspec.Struct, frozen=True):
    uri: str
    quick: bool
    full: bool = False

    def rounds(self, thorough: int) -> int:
        return max(3, thorough // 4) if self.quick else thorough

    @asynccontextmanager
    async def database(self, *, initialised: bool = False) -> AsyncIterator[Database]:
        """A database of one's own, as `ximler db init` leaves it or empty; dropped at the end."""
        database = await connect(self.uri, name=f"ximler_bench_{os.getpid()}_{secrets.token_hex(3)}")
        try:
            if initialised:
                await ximler_setup.initialise(database)
            yield database
        finally:
            await database.client.drop_database(database.name)
            await database.close()

    @asynccontextmanager
    async def driver(self, database: Database) -> AsyncIterator[AsyncDatabase[dict[str, Any]]]:
        """The same database through PyMongo as it comes: no listeners, no options of ours."""
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self.uri)
        async with client:
            yield client[database.name]


@asynccontextmanager
async def setup(*, quick: bool, full: bool = False) -> AsyncIterator[Setup]:
    """On MONGODB_TEST_URI, or on the embedded server in a temporary folder."""
    if uri := os.environ.get("MONGODB_TEST_URI"):
        yield Setup(uri, quick, full)
        return
    with scratch() as folder:
        running = await server.start(Path(folder) / "data")
        try:
            yield Setup(running.uri, quick, full)
        finally:
            await running.stop()


def scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="ximler-bench-", ignore_cleanup_errors=True)


async def facts(uri: str) -> dict[str, str]:
    """The facts that figures depend on, without names of the machine or its folders."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
    async with client:
        mongod = (await client.admin.command("buildInfo"))["version"]
    found = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load when it began": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "Python": platform.python_version(),
        "mongod": mongod,
        "ximler": __version__,
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def silence() -> None:
    """Log as production does, JSON from `info` up, but discard the lines: the figures include the cost, and
    the tables stay readable.
    """
    logs.configure(Settings(log_format="json"))
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(Path(os.devnull).open("w")))
