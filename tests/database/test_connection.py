"""Connecting: one clear sentence per error, and automatic recovery when the database is back."""

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog
from bson import ObjectId

from ximler.core.clock import utc_now
from ximler.core.errors import Invalid, Unavailable
from ximler.core.settings import Settings, SettingsError
from ximler.database import Database, connect
from ximler.database.connection import StandaloneServer, redacted
from ximler.database.failures import DatabaseUnavailable
from ximler.database.monitoring import POOL, UP
from ximler.embedded import server
from ximler.embedded.mongod import find_mongod
from ximler.schema.audit_log import AuditLog
from ximler.schema.project import Project


def soon(uri: str, **given: Any) -> Settings:
    """Settings that do not wait long."""
    return Settings(**{"mongodb_uri": uri, "server_selection_timeout_ms": 100} | given)


def with_options(uri: str, options: str) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}{options}"


def project(name: str = "Bridge", **given: Any) -> Project:
    return Project(**{"user_id": ObjectId(), "name": name} | given)


# Options


async def test_the_specification_s_settings_are_the_defaults(mongodb_uri: str) -> None:
    database = await connect(mongodb_uri)
    options = database.client.options
    assert options.pool_options.max_pool_size == 10
    assert options.server_selection_timeout == 5
    assert options.pool_options.socket_timeout == 45
    assert options.retry_reads
    assert options.retry_writes
    assert options.pool_options.server_api
    assert options.pool_options.server_api.version == "1"
    assert not options.pool_options.server_api.strict
    assert options.write_concern.document == {}, "the server's default is majority"
    await database.close()


async def test_settings_change_them_and_the_uri_has_the_last_word(mongodb_uri: str) -> None:
    given = Settings(mongodb_uri=mongodb_uri, pool_size=3, server_selection_timeout_ms=1500, socket_timeout_ms=2500)
    database = await connect(with_options(mongodb_uri, "maxPoolSize=4&RetryWrites=false"), settings=given)
    options = database.client.options
    assert options.pool_options.max_pool_size == 4
    assert not options.retry_writes
    assert options.server_selection_timeout == 1.5
    assert options.pool_options.socket_timeout == 2.5
    await database.close()


async def test_the_database_s_name_is_the_argument_s_else_the_setting_s_else_the_uri_s(mongodb_uri: str) -> None:
    host, _, options = mongodb_uri.partition("?")
    named = f"{host.rstrip('/')}/from_uri?{options}"
    if "@" in host and "authSource" not in options:
        named += "&authSource=admin"
    for name, settings, expected in (
        (None, None, "from_uri"),
        (None, Settings(mongodb_uri=named, database="from_settings"), "from_settings"),
        ("from_argument", Settings(mongodb_uri=named, database="from_settings"), "from_argument"),
    ):
        database = await connect(named, settings=settings, name=name)
        assert database.name == expected
        await database.close()


async def test_features_outside_the_strict_stable_api_work(database: Database) -> None:
    await database.projects.insert(project("The old bridge"))
    assert await database.projects.find({"$text": {"$search": "bridge"}})
    assert await database.raw.projects.distinct("name") == ["The old bridge"]


@pytest.mark.parametrize(
    "options",
    ["w=majority", "readPreference=secondaryPreferred", "w=1&journal=true&readConcernLevel=local", "tz_aware=true"],
)
async def test_options_of_atlas_s_own_uris_do_not_break_transactions_or_reading(
    mongodb_uri: str, database: Database, options: str
) -> None:
    other = await connect(with_options(mongodb_uri, options), name=database.name)

    async def body(transaction: Database) -> None:
        await transaction.projects.insert(project())
        assert await transaction.projects.count({}) == 1
        assert await transaction.projects.find({})

    await other.transaction(body)
    (read,) = await other.projects.find({})
    assert read == await database.projects.get(read.id)
    await other.close()


async def test_more_tasks_than_connections_wait_for_their_turn(mongodb_uri: str, database: Database) -> None:
    other = await connect(mongodb_uri, settings=Settings(mongodb_uri=mongodb_uri, pool_size=2), name=database.name)
    await asyncio.gather(*(other.projects.insert(project(str(n))) for n in range(50)))
    assert await other.projects.count({}) == 50
    await other.close()


# Errors


async def test_an_unreachable_server_is_one_error_with_a_remedy(free_port: int) -> None:
    uri = f"mongodb://127.0.0.1:{free_port}/shop?replicaSet=rs"
    with structlog.testing.capture_logs() as logs, pytest.raises(DatabaseUnavailable) as caught:
        await asyncio.wait_for(connect(uri, settings=soon(uri)), 5)
    assert logs == []
    message = caught.value.message
    assert message.startswith(f"No MongoDB answers at mongodb://127.0.0.1:{free_port}/shop (")
    assert message.endswith("): start it, or correct MONGODB_URI")
    assert "Connect call failed" in message
    assert len(message) < 300


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
async def test_a_name_that_cannot_be_resolved_is_named(scheme: str) -> None:
    uri = f"{scheme}://ada:secret@cluster.nowhere.invalid/shop"
    with pytest.raises(DatabaseUnavailable) as caught:
        await asyncio.wait_for(connect(uri, settings=soon(uri)), 30)
    assert f"{scheme}://cluster.nowhere.invalid/shop" in caught.value.message
    assert caught.value.message.endswith("start it, or correct MONGODB_URI")


async def test_a_server_of_another_replica_set_is_no_answer(mongodb_uri: str) -> None:
    uri = mongodb_uri.replace("replicaSet=", "replicaSet=not-")
    with pytest.raises(DatabaseUnavailable, match=r"No replica set members available for replica set name \"not-"):
        await connect(uri, settings=soon(uri))


@pytest.mark.slow
async def test_a_wrong_password_is_reported_as_such(own_server: server.Server) -> None:
    parts = urlsplit(own_server.uri)
    for wrong in (f"{parts.username}:wrong-password", f"nobody:{parts.password}"):
        uri = own_server.uri.replace(f"{parts.username}:{parts.password}@", f"{wrong}@")
        with structlog.testing.capture_logs() as logs, pytest.raises(DatabaseUnavailable) as caught:
            await connect(uri, settings=Settings(mongodb_uri=uri))
        assert "does not accept this user and password: correct MONGODB_URI" in caught.value.message
        assert wrong.partition(":")[2] not in f"{caught.value!r} {logs}"
        assert "database disconnected" not in [log["event"] for log in logs], "it is we who left"


async def test_without_a_password_where_one_is_needed_nothing_is_read(own_server: server.Server) -> None:
    uri = f"mongodb://{own_server.uri.rpartition('@')[2]}"
    database = await connect(uri, settings=Settings(mongodb_uri=uri))
    with pytest.raises(DatabaseUnavailable, match="requires a user and a password"):
        await database.projects.find({})
    await database.close()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "must begin with mongodb://"),
        ("localhost:27017", "must begin with mongodb://"),
        ("http://localhost", "must begin with mongodb://"),
        ("mongodb://", "hostname"),
        ("mongodb:///shop", "Empty host"),
        ("mongodb://localhost:port/shop", "Port"),
        ("mongodb://localhost:99999/shop", "Port must be an integer between 0 and 65535"),
        ("mongodb://ada:p@ss@localhost/shop", "must be escaped"),
        ("mongodb://ada:p/ss@localhost/shop", "'/' in user or password must be written %2F"),
        ("mongodb://ada:p%ss@localhost/shop", "must be escaped"),
        ("mongodb+srv://localhost:27017/shop", "must not include a port"),
        ("mongodb+srv://a.example,b.example/shop", "one"),
        ("mongodb://localhost/shop?replicaSet", "key=value"),
    ],
)
async def test_a_malformed_uri_is_rejected_with_the_reason(uri: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        await connect(uri, settings=soon(uri))
    assert caught.value.message.startswith("MONGODB_URI is not usable: ")
    assert reason in caught.value.message
    assert caught.value.fields == {"mongodb_uri": "is not a usable MongoDB URI"}


@pytest.mark.parametrize("name", ["a.b", "a b", "a/b", "a$b", 'a"b', "a\\b", "a*b", "x" * 64, "é" * 40, "a\0b"])
async def test_a_name_that_no_database_can_have_is_refused(mongodb_uri: str, name: str) -> None:
    with pytest.raises(SettingsError, match="XIMLER_DATABASE") as caught:
        await connect(mongodb_uri, settings=Settings(mongodb_uri=mongodb_uri, database=name))
    assert caught.value.fields.keys() == {"database"}


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[str]:
    """A mongod that belongs to no replica set."""
    with a_mongod(tmp_path) as uri:
        yield uri


@pytest.fixture
def uninitiated(tmp_path: Path) -> Iterator[str]:
    """A mongod that waits for its replica set to be initiated."""
    with a_mongod(tmp_path, "--replSet", "rs0") as uri:
        yield uri


@contextmanager
def a_mongod(dbpath: Path, *options: str) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    where = ["--dbpath", dbpath, "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"]
    with subprocess.Popen([find_mongod(), *where, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any("Waiting for connections" in line for line in process.stdout), "mongod ended"
        yield f"mongodb://127.0.0.1:{port}/shop"
        process.kill()


@pytest.mark.slow
async def test_a_standalone_server_gets_an_error_that_says_how_to_make_it_a_replica_set(standalone: str) -> None:
    with pytest.raises(StandaloneServer) as caught:
        await connect(standalone, settings=Settings(mongodb_uri=standalone))
    assert isinstance(caught.value, Unavailable)
    assert standalone in caught.value.message
    for step in ("--replSet rs0", "rs.initiate()", "unset MONGODB_URI"):
        assert step in caught.value.message


@pytest.mark.slow
async def test_a_standalone_server_is_recognised_where_the_uri_names_a_replica_set(standalone: str) -> None:
    uri = f"{standalone}?replicaSet=rs0"
    with pytest.raises(DatabaseUnavailable) as caught:
        await connect(uri, settings=soon(uri, server_selection_timeout_ms=1000))
    for step in ("is not a member of the replica set", '"rs0"', "--replSet", "rs.initiate()"):
        assert step in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "?replicaSet=rs0"])
async def test_an_uninitiated_replica_set_is_recognised(uninitiated: str, options: str) -> None:
    uri = uninitiated + options
    with pytest.raises(StandaloneServer, match=r"that is not initiated: run rs\.initiate\(\) once in mongosh"):
        await connect(uri, settings=soon(uri, server_selection_timeout_ms=1000))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://localhost/shop", "mongodb://localhost/shop"),
        ("mongodb://ada:secret@localhost/shop?authSource=admin", "mongodb://localhost/shop"),
        ("mongodb+srv://ada:secret@cluster.mongodb.net/shop", "mongodb+srv://cluster.mongodb.net/shop"),
        ("mongodb://ada:se/cret@localhost/shop", "mongodb://localhost/shop"),
        ("mongodb://ada:se@cret@localhost/shop", "mongodb://localhost/shop"),
        ("mongodb://ada:se?cret@localhost/shop", "mongodb://localhost/shop"),
        ("mongodb://ada:se\ncret@localhost/shop", "mongodb://localhost/shop"),
        ("mongodb://a:1,b:2/shop?tlsCertificateKeyFilePassword=secret", "mongodb://a:1,b:2/shop"),
    ],
)
def test_a_uri_is_shown_without_credentials_and_options(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


# Time


async def test_the_clock_is_the_server_s_and_is_corrected_by_each_heartbeat(mongodb_uri: str) -> None:
    database = await connect(with_options(mongodb_uri, "heartbeatFrequencyMS=500"))
    assert abs((database.clock.now() - utc_now()).total_seconds()) < 5
    database.clock.observe(utc_now().replace(year=2001))
    async with asyncio.timeout(10):
        while database.clock.now().year == 2001:
            await database.ping()
    await database.close()


# Going away, and coming back


@pytest.mark.slow
async def test_when_the_database_dies_and_comes_back_requests_fail_clearly_and_recover_by_themselves(
    own_server: server.Server,
) -> None:
    uri = own_server.uri
    settings = Settings(mongodb_uri=uri, server_selection_timeout_ms=300)
    with structlog.testing.capture_logs() as logs:
        database = await connect(uri, settings=settings, name="recovery")
        acknowledged: list[ObjectId] = []
        failures: list[BaseException] = []
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                try:
                    acknowledged.append((await database.audit_logs.insert(AuditLog(action="a", resource="r"))).id)
                except DatabaseUnavailable as problem:
                    failures.append(problem)

        async def write_both(name: str) -> bool:
            """A document in each of two collections, or in neither."""

            async def body(transaction: Database) -> None:
                await transaction.projects.insert(project(name))
                await transaction.audit_logs.insert(AuditLog(action="made", resource=name))

            try:
                await database.transaction(body)
            except DatabaseUnavailable:
                return False
            return True

        async def write_pairs() -> list[str]:
            done = []
            count = 0
            while not stop.is_set():
                count += 1
                if await write_both(str(count)):
                    done.append(str(count))
            return done

        writers = [asyncio.create_task(write()) for _ in range(3)]
        pairs = asyncio.create_task(write_pairs())
        try:
            async with asyncio.timeout(30):
                while len(acknowledged) < 50:
                    await database.ping()
                await own_server.kill()
                while not failures or database.state.connected:
                    with pytest.raises(DatabaseUnavailable):
                        await database.ping()
                assert UP._value.get() == 0
                with pytest.raises(DatabaseUnavailable):
                    await database.notifications.trim(1, where={}, order=[("_id", 1)])
        finally:
            await own_server.restart()
        async with asyncio.timeout(30):
            before = len(acknowledged)
            while len(acknowledged) < before + 50 or not database.state.connected:
                try:
                    await database.ping()
                except DatabaseUnavailable:
                    continue
            stop.set()
            await asyncio.gather(*writers)
            done = await pairs
        assert UP._value.get() == 1
        kept = {entry.id for entry in await database.audit_logs.find({"action": "a"})}
        assert kept >= set(acknowledged), "an acknowledged write was lost"
        made = {found.name for found in await database.projects.find({})}
        assert made == {entry.resource for entry in await database.audit_logs.find({"action": "made"})}
        assert made >= set(done), "a committed transaction was lost"
        await database.client.drop_database(database.name)
        await database.close()
    events = [log["event"] for log in logs if log["event"].startswith("database")]
    changes = [event for event in events if event != "database error"]
    assert [event for event, _ in groupby(changes)] == [  # another test's connection to this server logs the same
        "database connected",
        "database disconnected",
        "database reconnected",
    ]
    assert 1 <= events.count("database error") <= 2, "once a row of failures"
    password = urlsplit(uri).password
    assert password
    assert password not in f"{logs} {failures}"


async def test_a_client_in_a_traceback_shows_no_password(own_server: server.Server) -> None:
    database = await connect(own_server.uri)
    password = urlsplit(own_server.uri).password
    assert password
    assert password not in f"{database!r} {database.client!r} {database.projects!r} {database.raw!r}"
    await database.close()


async def test_closing_is_no_disconnection(mongodb_uri: str) -> None:
    with structlog.testing.capture_logs() as logs:
        database = await connect(mongodb_uri)
        await database.ping()
        await database.close()
    assert [log["event"] for log in logs] == ["database connected"]


async def test_closing_gives_every_connection_back(mongodb_uri: str) -> None:
    before = POOL.labels("open")._value.get()
    database = await connect(mongodb_uri)
    await asyncio.gather(*(database.ping() for _ in range(20)))
    assert POOL.labels("open")._value.get() > before
    await database.close()
    assert POOL.labels("open")._value.get() == before


async def test_the_database_inside_a_transaction_knows_the_way_out(database: Database) -> None:
    async def body(transaction: Database) -> None:
        await transaction.projects.insert(project())
        assert transaction.session is not None
        assert transaction.outside.session is None
        assert await transaction.outside.projects.count({}) == 0
        assert await transaction.projects.count({}) == 1

    await database.transaction(body)


@pytest.mark.slow
async def test_a_server_that_stops_answering_for_longer_than_the_timeout_is_unavailable(
    own_server: server.Server,
) -> None:
    """Not gone: silent. The socket's timeout is what notices."""
    database = await connect(own_server.uri, settings=Settings(mongodb_uri=own_server.uri, socket_timeout_ms=300))
    try:
        await database.raw.projects.insert_one({})
        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(database.projects.find({"$where": "sleep(2000) || true"}), 10)
        assert await database.projects.count({}) == 1
    finally:
        await database.client.drop_database(database.name)
        await database.close()


async def test_a_port_that_speaks_something_else_is_no_mongodb() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.0\r\n")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, family=socket.AF_INET)
    port = listener.sockets[0].getsockname()[1]
    uri = f"mongodb://127.0.0.1:{port}/shop"
    with pytest.raises(DatabaseUnavailable, match="No MongoDB answers at"):
        await asyncio.wait_for(connect(uri, settings=soon(uri)), 10)
    listener.close()
    await listener.wait_closed()


async def test_an_applications_error_in_a_transaction_is_not_translated(database: Database) -> None:
    async def body(transaction: Database) -> None:
        raise Invalid.field("name", "is wrong")

    with pytest.raises(Invalid, match="name: is wrong"):
        await database.transaction(body)
