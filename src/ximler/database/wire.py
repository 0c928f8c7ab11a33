"""Reads and replies with less of PyMongo's overhead.

PyMongo's asynchronous client starts two tasks for each reply, and a cursor and a session for each read. Both cost more than the
read itself. Connections of `Pool` wait for a reply with one future and one timer, for every command. `ask` sends one `find` or
`aggregate` over such a connection. Server selection, pooling, error handling, monitoring events and BSON stay PyMongo's, except
that an idle connection to a known primary is checked out and in without PyMongo's locks.

Both rest on parts of PyMongo that are not documented, so only releases in `_RELEASES` are used in this way. With any other
release, and for every read that `ask` does not cover, reads go through PyMongo's documented methods.
"""

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo import _csot, network_layer
from pymongo.asynchronous import pool
from pymongo.asynchronous.command_cursor import AsyncCommandCursor
from pymongo.errors import (
    ConnectionFailure,
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
    from pymongo.asynchronous.command_runner import run_cursor_command
    from pymongo.asynchronous.mongo_client import _ClientCheckout
    from pymongo.helpers_shared import _REAUTHENTICATION_REQUIRED_CODE, _RETRYABLE_ERROR_CODES
    from pymongo.message import _UNPACK_REPLY, _op_msg
    from pymongo.pool_shared import PoolState
    from pymongo.server_selectors import writable_server_selector
    from pymongo.topology_description import TOPOLOGY_TYPE

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

__all__ = ["ask", "options"]

_FRESH_S = 1.0  # PyMongo's own age after which it looks whether an idle connection was closed
_POLL_S = 0.5  # PyMongo's own interval for noticing that the pool has cancelled an operation


class Connection(pool.AsyncConnection):
    """A connection that waits for a reply with one future and one timer."""

    async def send_message(self, message: bytes, max_doc_size: int) -> None:
        if max_doc_size > self.max_bson_size:
            await super().send_message(message, max_doc_size)  # raises DocumentTooLarge
        try:
            # Only copies into the transport's buffer and never waits. PyMongo wraps it in `asyncio.wait_for`, which in
            # Python 3.11 swallows a cancellation that arrives as the write completes.
            await self.conn.get_conn.write(message)
        except BaseException as error:
            await self._raise_connection_failure(error)

    async def receive_message(self, request_id: int | None) -> Any:
        protocol = self.conn.get_conn
        deadline = _Deadline(self, protocol)
        try:
            data, op_code = await protocol.read(request_id, self.max_message_size)
            unpack = _UNPACK_REPLY.get(op_code)
            if unpack is None:
                raise ProtocolError(f"Got opcode {op_code!r} but expected {_UNPACK_REPLY.keys()!r}")
            return unpack(data)
        except BaseException as error:
            await self._raise_connection_failure(error)
        finally:
            deadline.cancel()


class _Deadline:
    """Fails a pending read at the socket's timeout, or soon after the pool has cancelled its connection."""

    __slots__ = ("_connection", "_expires_at", "_loop", "_protocol", "_timer")

    def __init__(self, connection: Connection, protocol: "network_layer.PyMongoProtocol") -> None:
        self._connection = connection
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        timeout = _csot.remaining() if _csot.get_timeout() else protocol.gettimeout
        self._expires_at = None if timeout is None else self._loop.time() + timeout
        self._timer = self._loop.call_later(_POLL_S if timeout is None else min(timeout, _POLL_S), self._check)

    def _check(self) -> None:
        left = _POLL_S if self._expires_at is None else self._expires_at - self._loop.time()
        if self._connection.cancel_context.cancelled:
            self._protocol.close(_OperationCancelled("operation cancelled"))
        elif left <= 0:
            self._protocol.close(TimeoutError("timed out"))
        else:
            self._timer = self._loop.call_later(min(left, _POLL_S), self._check)

    def cancel(self) -> None:
        self._timer.cancel()


class Pool(pool.Pool):
    """PyMongo's pool with connections of ours. Monitors, which stream replies, keep PyMongo's connections."""

    async def connect(self, *arguments: Any, **options: Any) -> pool.AsyncConnection:
        connection = await super().connect(*arguments, **options)
        if not self.is_sdam:
            connection.__class__ = Connection  # the pool offers no way to choose the class
        return connection

    def take(self) -> pool.AsyncConnection | None:
        """Check out an idle connection without waiting; None where PyMongo has to wait, connect, or examine it.

        The event loop runs nothing else meanwhile, so no lock is taken: one that another task holds gives None.
        """
        if (
            self.state != PoolState.READY
            or not self.conns
            or self.requests >= self.max_pool_size
            or self.opts.max_idle_time_seconds is not None
            or self.lock.locked()
            or self.size_cond._waiters  # noqa: SLF001 (see above) (they came first)
            or self.pid != os.getpid()
        ):
            return None
        connection = self.conns[0]
        if connection.idle_time_seconds() > _FRESH_S or self.stale_generation(
            connection.generation, connection.service_id
        ):
            return None
        began = self._telemetry.checkout_started()
        self.conns.popleft()
        self.operation_count += 1
        self.requests += 1
        self.active_sockets += 1
        self.active_contexts.add(connection.cancel_context)
        connection.active = True
        self._telemetry.checkout_succeeded(connection.id, began)
        return connection

    async def give_back(self, connection: pool.AsyncConnection) -> None:
        """Check in a connection that `take` returned; waits only where another task holds the lock or waits for one."""
        if (
            self.lock.locked()
            or self.size_cond._waiters  # noqa: SLF001 (see above)
            or self._max_connecting_cond._waiters  # noqa: SLF001 (see above)
            or self.state != PoolState.READY
            or connection.closed
            or self.stale_generation(connection.generation, connection.service_id)
            or self.pid != os.getpid()
        ):
            await self.checkin(connection)
            return
        connection.active = False
        self._checkin_apply(connection, txn=False, cursor=False, forked=False)
        self._telemetry.checked_in(connection.id)


def options() -> dict[str, Any]:
    """Keyword arguments for the client."""
    return {"_pool_class": Pool} if _KNOWN else {}


async def ask(collection: "AsyncCollection[dict[str, Any]]", command: dict[str, Any]) -> list[dict[str, Any]] | None:
    """All documents of a `find` or `aggregate` on the primary, outside any session. Modifies `command`.

    A retryable failure is retried once, as PyMongo does, except that a full pool fails at once. None where the caller must read
    through PyMongo's documented methods. Raises PyMongoError.
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
    connection = server.pool.take()
    if connection is None:
        async with client._checkout(server, None) as connection:  # noqa: SLF001 (see above)
            cursor = await _send(collection, command, connection)
    else:
        try:
            cursor = await _send(collection, command, connection)
        except BaseException as error:
            checkout = _ClientCheckout.for_existing_conn(client, server, None, connection)
            try:
                await checkout.handle(type(error), error)  # the topology learns of it
            finally:
                await server.pool.checkin(connection)
            raise
        await server.pool.give_back(connection)
    if not cursor["id"]:
        found: list[dict[str, Any]] = cursor["firstBatch"]
        return found
    return await AsyncCommandCursor(collection, cursor, connection.address).to_list()


async def _send(collection: "AsyncCollection[dict[str, Any]]", command: dict[str, Any], connection: Any) -> Any:
    client: Any = collection.database.client
    connection.add_server_api(command)
    request_id, message, _, _ = _op_msg(
        0, command, collection.database.name, None, collection.codec_options, connection.compression_context
    )
    documents, _, _ = await run_cursor_command(
        connection,
        command,
        collection.database.name,
        request_id,
        message,
        client=client,
        session=None,
        listeners=client._event_listeners,  # noqa: SLF001 (see above)
        codec_options=collection.codec_options,
        command_name=next(iter(command)),
        pool_opts=connection.opts,
    )
    return documents[0]["cursor"]
