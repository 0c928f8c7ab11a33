"""A project's canvas as one JSON value with a revision:
read, replaced, and changed by JSON Patch or JSON Merge Patch.

Each change of the canvas increments its revision, in the command that changes it. A patch of properties in
objects is one guarded update (`paths`). Any other is applied to the whole value: a read, then a transaction
that fails if the revision is another one by then. The transaction stores the whole, or for a large canvas the
patch.

A Mongoose application that writes `canvasData` leaves the revision as it is. The part `projects.canvas`
follows such writes in the change stream and increments it, usually within a second, so that later saves based
on the earlier one are refused. Writes during a gap of the stream, or while no process runs this part, are
read from the server's oplog afterwards, if it reaches back far enough. A write that replaces the whole
project removes the revision; the next one is larger than any before it (`projects.next_revision`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from datetime import datetime
from typing import Any, Literal, TypeVar

import bson
import msgspec
import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound, Unavailable, XimlerError
from ximler.core.extended_json import plain
from ximler.core.stopping import end, pause
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.database.failures import RefusedChanges
from ximler.database.leases import TTL, Lease
from ximler.metering.limits.plans import limits_of
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import access, bases, canvas_text, compaction, edits, paths, positional, projects, storage
from ximler.projects.edits import POSITIONAL
from ximler.projects.projects import RevisionConflict
from ximler.runtime import Part, background
from ximler.schema.document import Identified
from ximler.schema.project import PROJECTS

__all__ = ["Canvas", "encoded", "merge", "patch", "read", "read_file", "read_json", "replace", "revision_of"]

V = TypeVar("V", bound=Identified)

_log = structlog.get_logger("ximler.projects")
_AGAIN_S = 5.0
_ATTEMPTS = 10
_REMEMBERED = 10_000


class _Revision(Identified, kw_only=True):
    canvas_revision: int = 0


class Canvas(msgspec.Struct, frozen=True):
    canvas_data: Any
    canvas_revision: int


@access.reader
async def read(database: Database, actor: Actor, project_id: ObjectId) -> Canvas:
    """The canvas and its revision. One command, two for a large canvas. Raises NotFound."""
    found = _found(await bases.read(database, _mine(actor, project_id)))
    return Canvas(found.canvas_data, found.canvas_revision or 0)


@access.reader
async def read_json(database: Database, actor: Actor, project_id: ObjectId) -> tuple[int, bytes | Iterator[bytes]]:
    """The revision of the canvas, and its JSON:
    of a large one in parts, each of which takes a moment of a thread.

    Commands as `read`. Raises NotFound.
    """
    stored = await bases.read_packed(database, _mine(actor, project_id))
    if stored is None:
        raise NotFound("No such project")
    found, packed = stored
    revision = found.canvas_revision or 0
    if packed is None:
        return revision, await asyncio.to_thread(encoded, found.canvas_data)
    if (effect := await asyncio.to_thread(bases.effect_of, found)) is not None:
        return revision, canvas_text.parts(packed, effect)
    return revision, await asyncio.to_thread(lambda: encoded(bases.unpacked(packed, found)))


@access.reader
async def read_file(database: Database, actor: Actor, project_id: ObjectId) -> tuple[bytes, int]:
    """The canvas as text, and its revision: as it was imported, if it is unchanged since. Raises NotFound."""
    found = _found(await database.projects.find_one(_mine(actor, project_id), into=bases.Stored))
    if (text := await bases.text_of(database, found)) is not None:
        return text, found.canvas_revision or 0
    now = await read(database, actor, project_id)
    return await asyncio.to_thread(encoded, now.canvas_data), now.canvas_revision


def encoded(canvas: Any) -> bytes:
    """A canvas as JSON."""
    return msgspec.json.encode(canvas, enc_hook=plain)


@access.reader
async def revision_of(database: Database, actor: Actor, project_id: ObjectId) -> int:
    """The canvas's revision, without its content. One command. Raises NotFound."""
    return _found(await database.projects.find_one(_mine(actor, project_id), into=_Revision)).canvas_revision


@access.editor
async def replace(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    data: Any,
    *,
    based_on: Collection[int] | None,
    any_keys: bool = False,
    text: bytes | None = None,
) -> int:
    """Replace the whole canvas, where it is at one of the revisions `based_on` (None: at any);
    returns the new revision.

    `any_keys`: keys may start with `$` and contain `.`. `text` is what `data` was read from, for `read_file`.

    Raises NotFound, Invalid, QuotaExceeded, RevisionConflict. Five commands, more for a large canvas.
    """
    if not isinstance(data, dict | list):
        raise Invalid.field("canvas", "must be an object or an array")
    changed = await projects.update(
        database, actor, project_id, {"canvas_data": data}, based_on=based_on, any_keys=any_keys, text=text
    )
    return changed.canvas_revision


@access.editor
async def patch(
    database: Database, actor: Actor, project_id: ObjectId, operations: Any, *, based_on: Collection[int] | None
) -> int:
    """Apply a JSON Patch (RFC 6902) to the canvas: all operations or none. See `replace`; one command more.

    A large canvas has it appended to the patches since its base.
    Followers receive it, if it fits into the log (`edits`).
    """
    return await _changed(database, actor, project_id, "patch", operations, based_on)


@access.editor
async def merge(
    database: Database, actor: Actor, project_id: ObjectId, change: Any, *, based_on: Collection[int] | None
) -> int:
    """Apply a JSON Merge Patch (RFC 7396) to the canvas. As `patch`."""
    return await _changed(database, actor, project_id, "merge", change, based_on)


async def _changed(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    kind: Literal["patch", "merge"],
    change: Any,
    based_on: Collection[int] | None,
) -> int:
    mine, encoded_change = _mine(actor, project_id), msgspec.json.encode(change)
    if (
        based_on is not None
        and len(based_on) == 1
        and (saved := await _by_path(database, mine, kind, change, encoded_change, *based_on))
    ):
        return saved
    apply = positional.apply_patch if kind == "patch" else _apply_merge
    for _ in range(_ATTEMPTS):
        now = _found(await bases.read(database, mine))
        revision = now.canvas_revision or 0
        if based_on is not None and revision not in based_on:
            raise RevisionConflict(revision)
        data, again_us = await asyncio.to_thread(apply, now.canvas_data, change)  # others are served meanwhile
        if not isinstance(data, dict | list):
            raise Invalid.field("canvas", "must be an object or an array")
        save = _Save(kind, encoded_change, projects.next_revision(now.canvas_revision, database.clock.now()))
        if await _append(database, now, data, save, again_us) or await _store(database, now, data, save):
            return save.revision
    raise Unavailable("The canvas is changed by too many others: try again in a moment")


def _apply_merge(data: Any, change: Any) -> tuple[Any, float]:
    return positional.merged(data, change), 0.0  # no more than reading it


class _Save(msgspec.Struct, frozen=True):
    """A change by position, as JSON, that makes a revision."""

    kind: Literal["patch", "merge"]
    change: bytes
    revision: int

    @property
    def log(self) -> dict[str, Any]:
        """For followers. A change that is too large for the log makes them read the canvas anew."""
        entry: dict[str, Any] = {"r": self.revision}
        if len(self.change) <= edits.MAX_LOGGED:
            entry[POSITIONAL[self.kind]] = self.change
        return {f"canvasLog.{self.revision % edits.LOGGED}": entry}


async def _append(database: Database, now: bases.Stored, data: Any, save: _Save, again_us: float) -> bool:
    """Append a change, which makes the large canvas `data`, to the patches since its base.

    False where the whole is to be stored: it is small, has become larger than what base and patches count as,
    has too many patches, or is another one by now. Raises Invalid, QuotaExceeded.
    """
    old, tail = bases.base_of(now.canvas_base), now.canvas_tail or []
    if old is None or old.text or not bases.is_applied_soon(tail, again_us):
        return False
    counted = old.bytes + len(bson.encode({"v": tail})) + len(save.change)
    if counted - old.bytes > edits.MAX_TAIL:
        return False
    if await asyncio.to_thread(storage.size_of, "canvasData", data, any_keys=True) > counted:
        return False
    mine = {"_id": now.id, "userId": now.user_id}
    where = {"canvasRevision": now.canvas_revision, "canvasBase.id": old.id, "canvasData": None}
    appended = {"$push": {"canvasTail": bases.entry(save.revision, save.change, kind=save.kind)}}
    if not await _guarded(database, mine, where, appended, save):
        return False
    if counted - old.bytes > compaction.WORTH_IT:
        await compaction.request(database, now.id, old)
    return True


async def _store(database: Database, now: bases.Stored, data: Any, save: _Save) -> bool:
    """Store the whole canvas in place of the one that was read; False where it is another one by now.

    Raises Invalid, QuotaExceeded.
    """
    old = bases.base_of(now.canvas_base)
    _, new = await asyncio.to_thread(storage.canvas_of, data, any_keys=old is not None)
    mine = {"_id": now.id, "userId": now.user_id}
    where = {"canvasRevision": now.canvas_revision} | ({"canvasBase.id": old.id} if old else {})
    stored = {"canvasBase": new.at(save.revision), "canvasData": None} if new else {"canvasData": data}
    change = {"$set": stored, "$unset": dict.fromkeys(["canvasTail"] if new else ["canvasBase", "canvasTail"], "")}
    return await _guarded(database, mine, where, change, save, lambda to: bases.swap(to, mine, old=old, new=new))


async def _by_path(
    database: Database, mine: dict[str, Any], kind: Literal["patch", "merge"], change: Any, text: bytes, revision: int
) -> int | None:
    """Apply a change of a small canvas without reading it; returns the new revision.
    None where that is not possible."""
    found = paths.by_path(kind, change) if revision > 0 else None
    if found is None:
        return None
    small = {"$lt": [{"$bsonSize": {"v": "$canvasData"}}, bases.LIMIT - found.size_bytes]}
    where = {"canvasRevision": revision, "$expr": {"$and": [*found.conditions, small]}}
    try:
        done = await _guarded(database, mine, where, found.operators, _Save(kind, text, revision + 1))
    except RefusedChanges:
        return None
    return revision + 1 if done else None


async def _guarded(
    database: Database,
    mine: dict[str, Any],
    where: dict[str, Any],
    change: dict[str, Any],
    save: _Save,
    also: Callable[[Database], Awaitable[None]] | None = None,
) -> bool:
    """Update the canvas where a filter matches, and count its bytes; False where it does not match."""
    limits = await limits_of(database, mine["userId"])
    stamps = {"canvasRevision": save.revision, "updatedAt": database.clock.now()}

    async def write(transaction: Database, logs: dict[str, Any]) -> bool:
        update = change | {name: change.get(name, {}) | logs.get(name, {}) for name in ("$set", "$unset")}
        update["$set"] |= stamps
        if not await transaction.projects.rewrite(mine | where, update):
            return False
        if also is not None:
            await also(transaction)
        await storage.settle(transaction, mine, limits)
        return True

    try:
        return await database.transaction(lambda transaction: write(transaction, {"$set": save.log}))
    except (RefusedChanges, QuotaExceeded):
        # Another application has written the log, or a canvas that shrinks has no room for it.
        # Without it followers read anew.
        return await database.transaction(lambda transaction: write(transaction, {"$unset": {"canvasLog": ""}}))


def _mine(actor: Actor, project_id: ObjectId) -> dict[str, Any]:
    return {"_id": project_id, "userId": actor.require_user()}


def _found(project: V | None) -> V:
    if project is None:
        raise NotFound("No such project")
    return project


@background
def _writes_by_others(*, database: Database, feed: Feed) -> Part:
    others = WritesByOthers(database, feed)
    return Part("projects.canvas", others.run, lease=True, granted=others.granted)


class Follower:
    """Follows changes of projects, in the process that runs it. `_heard` notes a change and sets `_heard_of`;
    `_work` then handles all that were noted.
    """

    _waits: str  # logged while the database is unavailable

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._heard_of = asyncio.Event()
        self._runs = False
        feed.subscribe([PROJECTS.name], lambda change: self._heard(change) if self._runs else None)

    async def run(self, stop: asyncio.Event) -> None:
        """Handle the feed's changes until `stop` is set, in one process."""
        self._runs = True
        try:
            while not await pause(stop, None, self._heard_of):
                self._heard_of.clear()
                try:
                    await self._work()
                except Unavailable as error:
                    _log.warning(self._waits, reason=error.message)
                    await pause(stop, _AGAIN_S)
        finally:
            self._runs = False

    def _heard(self, change: Change) -> None:
        raise NotImplementedError

    async def _work(self) -> None:
        raise NotImplementedError


class WritesByOthers(Follower):
    """Increments the revision of canvases that another application has written.

    Writes that happened while no process had the lease, or that the feed missed, are read from the server's
    oplog. Some are then handled twice, and followers read these canvases once more.
    """

    _waits = "revisions of canvases wait"

    def __init__(self, database: Database, feed: Feed) -> None:
        super().__init__(database, feed)
        self._written: set[ObjectId] = set()
        self._last: dict[ObjectId, int] = {}
        self._feed = feed
        self._lost = asyncio.Event()
        self._missed: set[datetime | str] = set()  # times and positions after which writes may have been missed
        feed.on_gap(lambda: self._miss(feed.lost_after) if self._runs and feed.lost_after else None)

    def granted(self, lease: Lease) -> None:
        """Replay writes: the previous holder may have been killed up to a lease's duration earlier, before it
        handled the latest ones."""
        self._miss(lease.before - 2 * TTL)

    def _miss(self, since: datetime | str) -> None:
        self._missed.add(since)
        self._lost.set()

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            finding = group.create_task(self._find_missed(stop))
            try:
                await super().run(stop)
            finally:
                await end([finding])

    async def _find_missed(self, stop: asyncio.Event) -> None:
        """Replay writes, beside the feed's: the server may take a minute to read its oplog."""
        while not await pause(stop, None, self._lost):
            self._lost.clear()
            try:
                while self._missed:
                    await self._replay(self._missed.pop())
            except Unavailable as error:
                _log.warning("missed writes wait", reason=error.message)
                await pause(stop, _AGAIN_S)

    async def _replay(self, since: datetime | str) -> None:
        reached = since

        def heard(change: Change) -> None:
            nonlocal reached
            self._heard(change)
            reached = change.position

        try:
            await self._feed.replay(PROJECTS.name, since, heard)
        except BaseException:
            self._miss(reached)  # the next attempt continues there
            raise

    async def _work(self) -> None:
        while self._written:
            project_id = self._written.pop()
            try:
                await self._increment(project_id)
            except BaseException as error:
                if isinstance(error, XimlerError) and not isinstance(error, Unavailable):
                    # The project refuses the change, whenever it is made: the others must not wait.
                    _log.warning("revision not incremented", project=str(project_id), reason=error.message)
                    continue
                self._written.add(project_id)  # due again at the next round, or when the part is restarted
                self._heard_of.set()
                raise

    async def _increment(self, project_id: ObjectId) -> None:
        known = {"_id": project_id, "canvasRevision": {"$ne": None}}
        if not await self._database.projects.patch(known, {"$inc": {"canvasRevision": 1}}):
            now, above = self._database.clock.now(), self._last.get(project_id, 0)
            first = {"$set": {"canvasRevision": projects.next_revision(None, now, above=above)}}
            await self._database.projects.patch({"_id": project_id, "canvasRevision": None}, first)

    def _heard(self, change: Change) -> None:
        if isinstance(revision := change.updated.get("canvasRevision"), int):
            self._last[change.id] = max(revision, self._last.pop(change.id, 0))
            if len(self._last) > _REMEMBERED:
                del self._last[next(iter(self._last))]
        names = {path.partition(".")[0] for path in (*change.updated, *change.removed)}
        if change.operation == "replace" or ("canvasData" in names and not names & {"canvasRevision", "canvasBase"}):
            self._written.add(change.id)
            self._heard_of.set()
