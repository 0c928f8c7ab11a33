"""One real mongod for the whole run, a database per test worker, an initialised and seeded database for every
test.

`MONGODB_TEST_URI` names a server to use; otherwise the embedded one is started in a temporary folder, once,
by the controlling process, and ends with it.
"""

import asyncio
import gc
import os
import secrets
import shutil
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from bson import ObjectId
from litestar.types import ASGIApp
from pymongo import AsyncMongoClient, pool_shared
from tests.failing import Failing
from tests.serving import Client, serve
from tests.shards import Watch

from ximler import setup
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database, connect, connection
from ximler.embedded import server
from ximler.schema import CATALOGUE
from ximler.schema.meta import META

_URI = pytest.StashKey[str]()
_ADMIN_URI = pytest.StashKey[str]()
_STOP = pytest.StashKey[Any]()
_GRIDFS = ["assets.files", "assets.chunks"]
_SEEDED = ["plans", "coupons", META.name]
_EMPTIED = [c.name for c in CATALOGUE if c.name not in _SEEDED] + _GRIDFS
_FIRST = {name: [{"$limit": 1}, {"$project": {"_id": {"$literal": name}}}] for name in _EMPTIED}
_WRITTEN = [  # the names of those that hold documents: one command, where emptying all costs 36
    *_FIRST[_EMPTIED[0]],
    *({"$unionWith": {"coll": name, "pipeline": _FIRST[name]}} for name in _EMPTIED[1:]),
]
_SLOW_FOLDERS = {"cli", "embedded", "mongoose"}  # their tests start processes of their own


class _Loop:
    """An event loop in its own thread, for the server that outlives each test's loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


_create_connection = pool_shared._async_create_connection
_listeners = connection.listeners
_watch = Watch()


async def _connect(address: Any, options: Any) -> Any:
    """PyMongo's function, which does not close its socket when it is cancelled, as the monitors of a client
    that is closed early are: the ResourceWarning failed whichever test ran when the socket was collected.
    """
    try:
        return await _create_connection(address, options)
    except asyncio.CancelledError as cancelled:
        for frame, _ in traceback.walk_tb(cancelled.__traceback__):
            if frame.f_code is _create_connection.__code__ and "sock" in frame.f_locals:
                frame.f_locals["sock"].close()
        raise


def _memory() -> str | None:
    """A folder in memory with room for the data of a whole run, or None: syncing the journal to a disk took
    5 to 10 % of the run.
    """
    try:
        return "/dev/shm" if shutil.disk_usage("/dev/shm").free > 4 << 30 else None
    except OSError:
        return None


def pytest_configure(config: pytest.Config) -> None:
    pool_shared._async_create_connection = _connect
    connection.listeners = lambda *args: [*_listeners(*args), _watch]
    # Without an error's local variables, which take seconds to print.
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise each process that a test starts recompiles 100 modules
    if hasattr(config, "workerinput"):
        config.stash[_URI] = config.workerinput["mongodb_uri"]
        config.stash[_ADMIN_URI] = config.workerinput["mongodb_admin_uri"]
        return
    if uri := os.environ.get("MONGODB_TEST_URI"):
        config.stash[_URI] = config.stash[_ADMIN_URI] = uri
        return
    folder = Path(tempfile.mkdtemp(prefix="ximler-tests-", dir=_memory()))
    loop = _Loop()
    running = loop.run(server.start(folder / "data"))
    config.stash[_URI], config.stash[_ADMIN_URI] = running.uri, running.admin_uri

    def stop() -> None:
        loop.run(running.stop())
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)

    config.stash[_STOP] = stop


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(config.rootpath / "tests").parts[0] in _SLOW_FOLDERS:
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Fail a test in which the product sent a command that every shard of a cluster would get,
    and is not expected."""
    yield
    if problems := _watch.problems:
        _watch.problems = []
        pytest.fail("\n".join(problems), pytrace=False)


def pytest_collection_finish() -> None:
    """Full garbage collections walk all that was imported, for up to a second: no test is to pay for one."""
    gc.collect()
    gc.freeze()


def pytest_configure_node(node: Any) -> None:
    """Called by xdist in the controller, for each worker."""
    node.workerinput["mongodb_uri"] = node.config.stash[_URI]
    node.workerinput["mongodb_admin_uri"] = node.config.stash[_ADMIN_URI]


def pytest_unconfigure(config: pytest.Config) -> None:
    if stop := config.stash.get(_STOP, None):
        stop()


@pytest.fixture(scope="session")
def mongodb_uri(pytestconfig: pytest.Config) -> str:
    return pytestconfig.stash[_URI]


@pytest.fixture(scope="session")
def mongodb_admin_uri(pytestconfig: pytest.Config) -> str:
    """Of a user that may make users and roles."""
    return pytestconfig.stash[_ADMIN_URI]


@pytest.fixture(scope="session")
async def _worker_database(mongodb_uri: str) -> AsyncIterator[Database]:
    database = await connect(mongodb_uri, name=f"ximler_test_{os.getpid()}_{secrets.token_hex(3)}")
    assert await setup.initialise(database) == []
    yield database
    for name in (database.name, f"{database.name}_keys"):
        await database.client.drop_database(name)
    await database.close()


@pytest.fixture
async def database(_worker_database: Database) -> AsyncIterator[Database]:
    """Initialised and seeded, as a new installation; emptied after the test."""
    async with _restored(_worker_database) as database:
        yield database
    assert not await _watch.disproved(database.client[f"{database.name}_keys"])


@asynccontextmanager
async def _restored(database: Database) -> AsyncIterator[Database]:
    if database.name not in _seeds:
        _seeds[database.name] = {name: await _documents(database, name) for name in _SEEDED}
    yield database
    database.clock.offset_ms = 0
    written = await (await database.raw[_EMPTIED[0]].aggregate(_WRITTEN)).to_list()
    await asyncio.gather(
        *(database.raw[found["_id"]].delete_many({}) for found in written),
        *(_seeded_again(database, name) for name in _SEEDED),
    )


_seeds: dict[str, dict[str, list[dict[str, Any]]]] = {}


async def _documents(database: Database, collection: str) -> list[dict[str, Any]]:
    return await database.raw[collection].find({}, sort={"_id": 1}).to_list()


async def _seeded_again(database: Database, collection: str) -> None:
    """Untouched seeds stay: processes that follow plans would read all of them again after each test."""
    seeds = _seeds[database.name][collection]
    if await _documents(database, collection) != seeds:
        await database.raw[collection].delete_many({})
        await database.raw[collection].insert_many(seeds)


@pytest.fixture(scope="session")
async def own_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[server.Server]:
    """A replica set with passwords that a test may kill and restart."""
    running = await server.start(tmp_path_factory.mktemp("own") / "data", parameters={"enableTestCommands": "1"})
    yield running
    await running.stop()


@pytest.fixture(scope="session")
async def _failing(own_server: server.Server) -> AsyncIterator[Failing]:
    database = await connect(own_server.uri, name="failing")
    assert await setup.initialise(database) == []
    async with AsyncMongoClient(own_server.admin_uri) as admin:
        yield Failing(database, admin)
    await database.close()


@pytest.fixture
async def failing(_failing: Failing) -> AsyncIterator[Failing]:
    """A database, as `database`, whose commands can be made to fail."""
    async with _restored(_failing.database):
        yield _failing


@pytest.fixture
async def empty_database(mongodb_uri: str) -> AsyncIterator[Database]:
    """A database that nobody has initialised."""
    database = await connect(mongodb_uri, name=f"ximler_test_{os.getpid()}_{secrets.token_hex(3)}")
    yield database
    await database.client.drop_database(database.name)
    await database.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Development settings with cheap password hashes; jobs run only when a test runs them."""
    return Settings(
        secret_key="a secret key that is only for the tests",
        argon2_memory_kib=7168,
        argon2_time_cost=1,
        worker=False,
        data_dir=tmp_path,
    )


@pytest.fixture
def actor() -> Actor:
    return Actor(kind="user", via="session", user_id=ObjectId())


@pytest.fixture(scope="session")
async def _worker_app(_worker_database: Database, mongodb_uri: str) -> AsyncIterator[ASGIApp]:
    settings = Settings(
        secret_key="a secret key that is only for the tests",
        argon2_memory_kib=7168,
        argon2_time_cost=1,
        database=_worker_database.name,
        environment="development",
        worker=False,
    )
    async with serve(settings, mongodb_uri) as app:
        yield app


@pytest.fixture
def app(_worker_app: ASGIApp, database: Database) -> ASGIApp:
    """The whole application on the test's `database`, with the test's `settings`."""
    return _worker_app


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[Client]:
    """An anonymous client."""
    somebody = Client(app)
    yield somebody
    await somebody.http.aclose()


@pytest.fixture
async def ada(app: ASGIApp) -> AsyncIterator[Client]:
    """A signed-in client."""
    ada = await Client(app).join("ada@example.com")
    yield ada
    await ada.http.aclose()


@pytest.fixture
def free_port() -> Iterator[int]:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]
