"""Reads and replies with less of PyMongo's overhead.

PyMongo's asynchronous client starts two tasks for each reply, and a cursor and a session for each read. Both
cost more than the read itself. Connections of `Pool` wait for a reply with one future, for every command.
`ask` sends one `find` or `aggregate` over such a connection. Server selection, pooling, error handling,
monitoring events and BSON stay PyMongo's, with two exceptions. An idle connection is checked out and in
without PyMongo's locks. While all connections are in use, operations wait in one queue of ours, and an
operation that ends passes its connection to the next. PyMongo's own queue is left to operations with a
deadline. These come first: PyMongo counts them on its condition, and they are few.

Both rest on parts of PyMongo that are not documented, so only releases in `_RELEASES` are used in this way.
With any other release, and for every read that `ask` does not cover, reads go through PyMongo's documented
methods.
"""

import asyncio
import math
import os
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import bson
import pymongo
from pymongo import _csot, network_layer
from pymongo.asynchronous import pool
from pymongo.asynchronous.command_cursor import AsyncCommandCursor
from pymongo.errors import (
    ConnectionFailure,
    NotPrimaryError,
    OperationFailure,
    ProtocolError,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    _OperationCancelled,
)
from pymongo.server_type import SERVER_TYPE

_RELEASES = {(4, 20)}  # read and tested; add a release after its network layer, pool and command runner were compared
_KNOWN = pymongo.version_tuple[:2] in _RELEASES

if _KNOWN:
    from pymongo.helpers_shared import (
        _REAUTHENTICATION_REQUIRED_CODE,
        _RETRYABLE_ERROR_CODES,
        _check_command_response,
    )
    from pymongo.message import _UNPACK_REPLY, _convert_exception, _op_msg
    from pymongo.pool_shared import PoolState
    from pymongo.server_selectors import writable_server_selector
    from pymongo.topology_description import TOPOLOGY_TYPE

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

__all__ = ["ask", "options"]

_FRESH_S = 1.0  # PyMongo's own age after which it looks whether an idle connection was closed
_POLL_S = 0.5  # PyMongo's own interval for noticing that the pool has cancelled an operation
_EXAMINE_S = 0.1  # interval in which the queue looks for connections that were not passed to it


class Connection(pool.AsyncConnection):
    """A connection that waits for a reply with one future.
    One timer, which lasts over many commands, watches it."""

    _reading: "network_layer.PyMongoProtocol | None" = None  # while a reply is awaited
    _expires_at = math.inf
    _due_at = 0.0
    _timer: asyncio.TimerHandle | None = None

    async def send_message(self, message: bytes, max_doc_size: int) -> None:
        if max_doc_size > self.max_bson_size:
            await super().send_message(message, max_doc_size)  # raises DocumentTooLarge
        try:
            # Only copies into the transport's buffer and never waits. PyMongo wraps it in `asyncio.wait_for`,
            # which in Python 3.11 swallows a cancellation that arrives as the write completes.
            await self.conn.get_conn.write(message)
        except BaseException as error:
            await self._raise_connection_failure(error)

    async def receive_message(self, request_id: int | None) -> Any:
        protocol = self._reading = self.conn.get_conn
        loop = asyncio.get_running_loop()
        timeout = _csot.remaining() if _csot.get_timeout() else protocol.gettimeout
        self._expires_at = math.inf if timeout is None else loop.time() + timeout
        if self._timer is None or self._expires_at < self._due_at:
            self._watch(loop)
        try:
            data, op_code = await protocol.read(request_id, self.max_message_size)
            unpack = _UNPACK_REPLY.get(op_code)
            if unpack is None:
                raise ProtocolError(f"Got opcode {op_code!r} but expected {_UNPACK_REPLY.keys()!r}")
            return unpack(data)
        except BaseException as error:
            await self._raise_connection_failure(error)
        finally:
            self._reading = None

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Check again in half a second, or when the reply is due."""
        if self._timer is not None:
            self._timer.cancel()
        self._due_at = min(loop.time() + _POLL_S, self._expires_at)
        self._timer = loop.call_at(self._due_at, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail a reply that is late, or whose connection the pool has cancelled.
        Idle connections are not watched."""
        self._timer = None
        if self._reading is None:
            return
        if self.cancel_context.cancelled:
            self._reading.close(_OperationCancelled("operation cancelled"))
        elif self._expires_at <= loop.time():
            self._reading.close(TimeoutError("timed out"))
        else:
            self._watch(loop)


class Pool(pool.Pool):
    """PyMongo's pool with connections of ours. Monitors, which stream replies, keep PyMongo's connections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queue: deque[asyncio.Future[pool.AsyncConnection | None]] = deque()
        self._examiner: asyncio.TimerHandle | None = None

    async def connect(self, *arguments: Any, **options: Any) -> pool.AsyncConnection:
        connection = await super().connect(*arguments, **options)
        if not self.is_sdam:
            connection.__class__ = Connection  # the pool offers no way to choose the class
        return connection

    async def _get_conn(self, checkout_started_time: float, handler: Any = None) -> pool.AsyncConnection:
        """The checkout of every operation. PyMongo opens and examines connections, and keeps deadlines."""
        connection = self._take()
        if (
            connection is None
            and self.state == PoolState.READY
            and (self._free() <= 0 or (self.lock.locked() and self.requests))
            and self.opts.wait_queue_timeout is None
            and _csot.get_timeout() is None
            and self.pid == os.getpid()
        ):
            connection = await self._turn()
        return connection or await super()._get_conn(checkout_started_time, handler)

    async def checkin(self, connection: pool.AsyncConnection) -> None:
        """Pass the connection to the next in the queue, or check it in. Waits only for the lock."""
        if self._pass_on(connection):
            return
        if (
            self.lock.locked()
            or self.size_cond._waiters  # noqa: SLF001 (see above)
            or self._max_connecting_cond._waiters  # noqa: SLF001 (see above)
            or not self._is_good(connection)
        ):
            try:
                await super().checkin(connection)
            finally:
                self._serve()
            return
        connection.active = False
        self._checkin_apply(connection, txn=False, cursor=False, forked=False)
        self._telemetry.checked_in(connection.id)

    def _free(self) -> float:
        """How many operations may begin besides those in PyMongo's own queue.
        Negative if these wait for a place."""
        return self.max_pool_size - self.requests - len(self.size_cond._waiters)  # noqa: SLF001 (see above)

    def _take(self) -> pool.AsyncConnection | None:
        """Check out an idle connection without waiting;
        None where PyMongo has to wait, connect, or examine it.

        The event loop runs nothing else meanwhile, so no lock is taken:
        one that another task holds gives None.
        """
        if (
            self.state != PoolState.READY
            or len(self.conns) <= len(self._max_connecting_cond._waiters)  # noqa: SLF001 (see above) (they came first)
            or self._free() <= 0
            or self.opts.max_idle_time_seconds is not None
            or self.lock.locked()
            or self.pid != os.getpid()
        ):
            return None
        connection = self.conns[0]
        if connection.idle_time_seconds() > _FRESH_S or self.stale_generation(
            connection.generation, connection.service_id
        ):
            return None
        self.conns.popleft()
        self.operation_count += 1
        self.requests += 1
        self.active_sockets += 1
        self.active_contexts.add(connection.cancel_context)
        connection.active = True
        return connection

    async def _turn(self) -> pool.AsyncConnection | None:
        """Wait for a connection that another operation gives back.
        None where PyMongo has to connect, or to fail."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[pool.AsyncConnection | None] = loop.create_future()
        self._queue.append(turn)
        if self._examiner is None:
            self._examiner = loop.call_later(_EXAMINE_S, self._examine)
        try:
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and (passed := turn.result()) is not None:
                self._telemetry.checkout_succeeded(passed.id, time.monotonic())
                await self.checkin(passed)
            raise

    def _examine(self) -> None:
        """End waiting that no operation would end: the pool was paused or closed, or lost a connection."""
        self._examiner = None
        self._serve()
        if self._queue:
            self._examiner = asyncio.get_running_loop().call_later(_EXAMINE_S, self._examine)

    def _serve(self) -> None:
        """Let as many operations of the queue begin as there are places;
        all of them fail if the pool is not ready."""
        free = self._free()
        while self._queue and (free > 0 or self.state != PoolState.READY):
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(self._take())
                free -= 1

    def _pass_on(self, connection: pool.AsyncConnection) -> bool:
        """Give the connection to the next in the queue, unless an operation in
        PyMongo's own queue still lacks one."""
        if (
            not self._queue
            or self._free() < 0
            or len(self._max_connecting_cond._waiters) > len(self.conns)  # noqa: SLF001 (see above)
            or not self._is_good(connection)
        ):
            return False
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                self._telemetry.checked_in(connection.id)
                turn.set_result(connection)
                return True
        return False

    def _is_good(self, connection: pool.AsyncConnection) -> bool:
        return not (
            self.state != PoolState.READY
            or connection.closed
            or connection.pinned_txn
            or connection.pinned_cursor
            or self.stale_generation(connection.generation, connection.service_id)
            or self.pid != os.getpid()
        )


def options() -> dict[str, Any]:
    """Keyword arguments for the client."""
    return {"_pool_class": Pool} if _KNOWN else {}


async def ask(collection: "AsyncCollection[dict[str, Any]]", command: dict[str, Any]) -> list[dict[str, Any]] | None:
    """All documents of a `find` or `aggregate` on the primary, outside any session. Modifies `command`.

    A retryable failure is retried once, as PyMongo does, except that a full pool fails at once. None where
    the caller must read through PyMongo's documented methods. Raises PyMongoError.
    """
    client: Any = collection.database.client
    settings = client.options
    if (
        not _KNOWN
        or collection.read_preference.mode
        or settings.load_balanced  # such a cursor is bound to its connection
        or settings.timeout is not None
        or _csot.get_timeout()
    ):
        return None
    if collection.read_concern.level:
        command["readConcern"] = collection.read_concern.document
    name = next(iter(command))
    failure: PyMongoError | None = None
    failed_on: list[Any] = []
    while True:
        try:
            server = _primary(client) or await client._select_server(  # noqa: SLF001 (see above)
                writable_server_selector, None, name, deprioritized_servers=failed_on
            )
        except ServerSelectionTimeoutError:
            if failure is not None:
                raise failure from None
            raise
        if not server.description.is_writable:
            return None  # a direct connection to a secondary needs `$readPreference`
        try:
            return await _ask(collection, command, server)
        except (ConnectionFailure, OperationFailure) as error:
            if error.has_error_label("SystemOverloadedError") or (
                isinstance(error, OperationFailure) and error.code == _REAUTHENTICATION_REQUIRED_CODE
            ):
                return None  # PyMongo backs off, or authenticates again
            if failure is not None or not settings.retry_reads or not _is_retryable(error):
                raise
            failure = error
            if server.description.server_type == SERVER_TYPE.Mongos:
                failed_on = [server]


def _is_retryable(error: PyMongoError) -> bool:
    if isinstance(error, OperationFailure):
        return error.code in _RETRYABLE_ERROR_CODES
    return not isinstance(error, WaitQueueTimeoutError)


def _primary(client: Any) -> Any:
    """The primary of a replica set, if it is known: what PyMongo would select, without its locks."""
    topology = client._topology  # noqa: SLF001 (see above)
    known = topology.description
    if (
        known.topology_type != TOPOLOGY_TYPE.ReplicaSetWithPrimary
        or known._incompatible_err  # noqa: SLF001 (see above)
        or topology._monitor_tasks  # noqa: SLF001 (see above) (it cleans up when it selects)
        or client._loop is not asyncio.get_running_loop()  # noqa: SLF001 (see above)
    ):
        return None
    for address, description in known.server_descriptions().items():
        if description.server_type == SERVER_TYPE.RSPrimary:
            return topology._servers.get(address)  # noqa: SLF001 (see above)
    return None


async def _ask(
    collection: "AsyncCollection[dict[str, Any]]", command: dict[str, Any], server: Any
) -> list[dict[str, Any]]:
    client: Any = collection.database.client
    async with client._checkout(server, None) as connection:  # noqa: SLF001 (see above)
        cursor = await _send(collection, command, connection)
    if not cursor["id"]:
        found: list[dict[str, Any]] = cursor["firstBatch"]
        return found
    return await AsyncCommandCursor(collection, cursor, connection.address).to_list()


async def _send(collection: "AsyncCollection[dict[str, Any]]", command: dict[str, Any], connection: Any) -> Any:
    """The reply's cursor. As PyMongo's `run_cursor_command` for a command without a session."""
    client: Any = collection.database.client
    connection.add_server_api(command)
    name, codec_options = collection.database.name, collection.codec_options
    request_id, message, _, _ = _op_msg(0, command, name, None, codec_options, connection.compression_context)
    listeners, verb = client._event_listeners, next(iter(command))  # noqa: SLF001 (see above)
    place = connection.address, connection.server_connection_id
    listeners.publish_command_start(command, name, request_id, *place)
    began = time.monotonic()
    try:
        await connection.send_message(message, 0)
        received = await connection.receive_message(request_id)
        reply: dict[str, Any] = bson.decode_all(received.payload_document, codec_options)[0]
        client._topology._receive_cluster_time_no_lock(reply.get("$clusterTime"))  # noqa: SLF001 (see above)
        if not reply.get("ok"):
            _check_command_response(reply, connection.max_wire_version, pool_opts=connection.opts)
    except Exception as error:
        failure = error.details if isinstance(error, NotPrimaryError | OperationFailure) else _convert_exception(error)
        lasted = timedelta(seconds=time.monotonic() - began)
        listeners.publish_command_failure(lasted, failure, verb, request_id, *place, database_name=name)
        raise
    lasted = timedelta(seconds=time.monotonic() - began)
    listeners.publish_command_success(lasted, reply, verb, request_id, *place, database_name=name)
    return reply["cursor"]
