"""Change streams: notification of writes without polling.

One `Feed` per process: every change stream costs the server for each write, so all listeners share one.
Callbacks receive the committed writes of all clients in commit order, and gaps, after which any number of
writes may have been missed.

`fresh` says whether silence means that nothing was written. It counts from the time a request was *sent*: an
answer may have waited in a buffer while this process or the network was frozen.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
import pymongo
import structlog
from bson import Timestamp
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.errors import OperationFailure, PyMongoError

from ximler.core.errors import Unavailable
from ximler.core.stopping import pause
from ximler.database.connection import Database
from ximler.database.failures import DRIVER_ERRORS, translated

__all__ = ["FRESH_S", "Change", "Feed"]

_log = structlog.get_logger("ximler.database")

FRESH_S = 1.0
_AWAIT_MS = 100  # the server answers at least this often, also without events; see decision 6
_GIVE_UP_S = 5.0  # a connection silent for longer is considered dead
_REOPEN_S = 0.25
_REPLAY_S = 60.0  # a server answers after it has read its oplog up to enough writes, or to the end
_REPLAYED = 500  # writes of a batch: between batches, the process serves others
_EVERYTHING = frozenset({"drop", "rename", "dropDatabase", "invalidate"})  # these name no document and affect all
_WRITES = ("insert", "update", "replace", "delete")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One committed write, in MongoDB's form: camelCase names, naive UTC times.

    `document` is the whole document of an insert or a replace. `updated` has the fields that an update set,
    by path (`limits.projects`), and `removed` the paths that it unset. `position` orders writes as text; it
    is the write's resume token, so it is the same in every process, whichever collections that watches.
    """

    collection: str
    operation: Literal["insert", "update", "replace", "delete"]
    id: Any
    document: dict[str, Any] | None = None
    updated: dict[str, Any] = {}
    removed: list[str] = []
    position: str = ""


Callback = Callable[[Change], None]


class Feed:
    """The process's change stream, shared. `run` it for as long as the process lives."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._callbacks: dict[str, list[Callback]] = {}
        self._gap_callbacks: list[Callable[[], None]] = []
        self._forget_callbacks: list[Callable[[str, Any], None]] = []
        self._known_until = -FRESH_S  # everything committed before this time has been delivered
        self._token: Any = None
        self.lost_after = ""  # in callbacks of `on_gap`: the position after which the stream was lost, else empty
        self._widened = asyncio.Event()
        database.feed = self
        self._proven = False  # whether the stream has been read from since the token was last used

    @property
    def fresh(self) -> bool:
        """Whether everything committed up to a second ago has been delivered to the callbacks."""
        return time.monotonic() - self._known_until < FRESH_S

    @property
    def position(self) -> str:
        """The writes up to here are delivered, in the order of `Change.position`.
        Empty before the stream begins."""
        return str(self._token["_data"]) if self._token else ""

    def subscribe(self, collections: Iterable[str], callback: Callback) -> None:
        """Call `callback` for every write to these collections. It must be fast: all later events wait for
        it.

        Subscribing to a collection that is not watched yet makes a running feed not fresh until it is.
        """
        for name in collections:
            if name not in self._callbacks:
                self._callbacks[name] = []
                self._widened.set()
                self._known_until = -FRESH_S
            self._callbacks[name].append(callback)

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call `callback` when writes may have been missed, at the start included: cached values must be
        dropped.

        Values read after the call are kept current by the changes that follow it.
        """
        self._gap_callbacks.append(callback)

    def on_forget(self, callback: Callable[[str, Any], None]) -> None:
        """Call `callback(collection, id)` immediately for changes by this process (`Database.forget`)."""
        self._forget_callbacks.append(callback)

    def forget(self, collection: str, name: Any) -> None:
        """See `Database.forget`."""
        for callback in self._forget_callbacks:
            callback(collection, name)

    async def caught_up(self) -> None:
        """Return once all writes committed before the call are delivered: for tests, and at shutdown."""
        asked = time.monotonic()
        while self._known_until < asked:  # noqa: ASYNC110 (for tests and shutdown)
            await asyncio.sleep(0.01)

    async def replay(self, collection: str, since: datetime | str, callback: Callback) -> bool:
        """Call `callback` for each write to a collection that was committed before this call, and after a
        position or since a time of the server's clock. The feed must be running.

        Inserts and replacements come without their document. Returns False if the server no longer has all of
        these writes. Raises Unavailable: after the position of the last write, a new call continues.
        """
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                await self.caught_up()
        except TimeoutError:
            raise Unavailable("The change stream is interrupted") from None
        until = self.position
        start: dict[str, Any] = (
            {"resume_after": {"_data": since}}
            if isinstance(since, str)
            else {"start_at_operation_time": Timestamp(since, 1)}
        )
        wanted = {"ns.coll": collection, "operationType": {"$in": _WRITES}}
        pipeline: list[dict[str, Any]] = [{"$match": wanted}, {"$project": {"fullDocument": 0}}]
        try:
            with pymongo.timeout(_REPLAY_S):
                stream = await self._database.raw.watch(
                    pipeline, max_await_time_ms=_AWAIT_MS, batch_size=_REPLAYED, **start
                )
            async with stream:
                while stream.alive:
                    with pymongo.timeout(_REPLAY_S):
                        event = await stream.try_next()
                    if event is not None:
                        callback(_change(event))
                    if str((stream.resume_token or {}).get("_data", "")) >= until:
                        return True
        except DRIVER_ERRORS as error:
            problem = translated(error, collection)
            if isinstance(problem, Unavailable):
                raise problem from error
            _log.warning("writes cannot be read again", collection=collection, since=str(since), error=str(error))
        return False

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until stopped. Interrupted, the stream resumes; if it cannot, a gap is reported."""
        while not stop.is_set():
            try:
                await self._watch(stop)
            except PyMongoError as error:
                if isinstance(error, OperationFailure) and not self._proven:
                    self._lose()  # its position is no longer in the oplog, or later events cannot be read
                _log.debug("change stream lost", error=str(error), resumes=self._token is not None)
            except Exception:
                self._lose()
                raise
            finally:
                self._known_until = -FRESH_S
            await pause(stop, _REOPEN_S)

    async def _watch(self, stop: asyncio.Event) -> None:
        self._widened.clear()
        self._proven = False
        wanted = {"$or": [{"ns.coll": {"$in": list(self._callbacks)}}, {"operationType": {"$in": list(_EVERYTHING)}}]}
        sent = time.monotonic()
        with pymongo.timeout(_GIVE_UP_S):
            stream = await self._database.raw.watch(
                [{"$match": wanted}], resume_after=self._token, max_await_time_ms=_AWAIT_MS
            )
        try:
            if self._token is None:
                self._gap()
                self.lost_after = ""
                self._token, self._proven = stream.resume_token, True
                self._known_until = sent
            while stream.alive and not self._widened.is_set() and not stop.is_set():
                if _asks(stream):
                    sent = time.monotonic()
                with pymongo.timeout(_GIVE_UP_S):
                    event = await stream.try_next()
                if self._widened.is_set():
                    break  # this batch may skip writes to the new collection: the wider stream reads it again
                if event is not None:
                    self._hand_on(event)
                self._token, self._proven = stream.resume_token, True
                if _asks(stream):
                    self._known_until = sent  # a batch is delivered as a whole
            if not stream.alive:
                self._lose()  # invalidated: the database was dropped
        finally:
            self._known_until = -FRESH_S
            with pymongo.timeout(1):
                await stream.close()

    def _lose(self) -> None:
        self.lost_after = self.position or self.lost_after
        self._token = None

    def _hand_on(self, event: dict[str, Any]) -> None:
        operation = event["operationType"]
        if operation in _EVERYTHING:
            if event.get("ns", {}).get("coll") in self._callbacks or operation in ("dropDatabase", "invalidate"):
                self._gap()
            return
        collection = event["ns"]["coll"]
        if operation not in _WRITES or collection not in self._callbacks:
            return
        change = _change(event)
        for callback in self._callbacks[collection]:
            try:
                callback(change)
            except Exception as bug:  # one listener's bug must not stop the others
                _log.exception("change callback failed", collection=collection, exc_info=bug)

    def _gap(self) -> None:
        for callback in self._gap_callbacks:
            try:
                callback()
            except Exception as bug:
                _log.exception("change callback failed", exc_info=bug)


def _change(event: Mapping[str, Any]) -> Change:
    description = event.get("updateDescription") or {}
    return Change(
        collection=event["ns"]["coll"],
        operation=event["operationType"],
        id=event["documentKey"]["_id"],
        document=event.get("fullDocument"),
        updated=description.get("updatedFields", {}),
        removed=description.get("removedFields", []),
        position=event["_id"]["_data"],
    )


def _asks(stream: AsyncChangeStream[Any]) -> bool:
    """Whether its next step requests a batch from the server, rather than reading the current one."""
    return not stream._cursor._has_next()  # noqa: SLF001 (no public equivalent)
