"""A project's canvas as one JSON value with a revision: read, replaced, and changed by JSON Patch or JSON Merge Patch.

Each change of the canvas increments its revision, in the command that changes it. A patch is applied to the whole value: a
read, then the transaction of `projects.update`, which fails if the revision is another one by then.

A Mongoose application that writes `canvasData` leaves the revision as it is. The part `projects.canvas` follows such writes
in the change stream and increments it, usually within a second, so that later saves based on the earlier one are refused.
A write during a gap of the stream, or while no process runs this part, leaves the revision unchanged. One that replaces the
whole project removes the revision; the next one is larger than any before it (`projects.next_revision`).
"""

import asyncio
from collections.abc import Collection
from typing import Any, TypeVar

import jsonpatch
import jsonpointer
import msgspec
import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound, Unavailable, XimlerError
from ximler.core.extended_json import plain
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.projects import access, bases, projects
from ximler.projects.projects import RevisionConflict
from ximler.runtime import Part, background
from ximler.schema.document import Identified
from ximler.schema.project import PROJECTS

__all__ = ["Canvas", "merge", "merged", "patch", "patched", "read", "read_file", "replace", "revision_of"]

V = TypeVar("V", bound=Identified)

_log = structlog.get_logger("ximler.projects")
_AGAIN_S = 5.0
MAX_OPERATIONS = 10_000
_MAX_COPIED = 5_000_000  # bytes of JSON that the operations of a patch may copy, together
_MAX_SHIFTED = 300_000_000  # elements of arrays that they may shift by inserting and removing, together: half a second
_REMEMBERED = 10_000
_REJECTED = (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException)


class _Revision(Identified, kw_only=True):
    canvas_revision: int = 0


class Canvas(msgspec.Struct, frozen=True):
    canvas_data: Any
    canvas_revision: int
    apart: bool = False  # it has a base


@access.reader
async def read(database: Database, actor: Actor, project_id: ObjectId) -> Canvas:
    """The canvas and its revision. One command, two for a large canvas. Raises NotFound."""
    found = _found(await bases.read(database, _mine(actor, project_id)))
    return Canvas(found.canvas_data, found.canvas_revision or 0, bases.base_of(found.canvas_base) is not None)


@access.reader
async def read_file(database: Database, actor: Actor, project_id: ObjectId) -> tuple[bytes, int]:
    """The canvas as text, and its revision: as it was imported, if it is unchanged since. Raises NotFound."""
    found = _found(await database.projects.find_one(_mine(actor, project_id), into=bases.Stored))
    if (text := await bases.text_of(database, found)) is not None:
        return text, found.canvas_revision or 0
    now = await read(database, actor, project_id)
    encoded = await asyncio.to_thread(msgspec.json.encode, now.canvas_data, enc_hook=plain)
    return encoded, now.canvas_revision


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
    """Replace the whole canvas, where it is at one of the revisions `based_on` (None: at any); returns the new revision.

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
    """Apply a JSON Patch (RFC 6902) to the canvas: all operations or none. See `replace`; one command more."""
    now = await _base(database, actor, project_id, based_on)
    data = await asyncio.to_thread(patched, now.canvas_data, operations)  # others are served meanwhile
    return await replace(database, actor, project_id, data, based_on=(now.canvas_revision,), any_keys=now.apart)


@access.editor
async def merge(
    database: Database, actor: Actor, project_id: ObjectId, change: Any, *, based_on: Collection[int] | None
) -> int:
    """Apply a JSON Merge Patch (RFC 7396) to the canvas. See `replace`; one command more."""
    now = await _base(database, actor, project_id, based_on)
    data = await asyncio.to_thread(merged, now.canvas_data, change)
    return await replace(database, actor, project_id, data, based_on=(now.canvas_revision,), any_keys=now.apart)


def patched(data: Any, operations: Any) -> Any:
    """`data` after a JSON Patch; it is changed in place. Raises Invalid naming the operation that does not apply."""
    if not isinstance(operations, list):
        raise Invalid.field("patch", "must be an array of operations")
    if len(operations) > MAX_OPERATIONS:
        raise Invalid.field(
            "patch", f"has {len(operations):,} operations, the limit is {MAX_OPERATIONS:,}: send several"
        )
    copied = shifted = 0
    for index, operation in enumerate(operations):
        place = f"patch/{index}"
        if not isinstance(operation, dict):
            raise Invalid.field(place, "must be an object")
        try:
            copied += _copies(data, operation)
            if copied > _MAX_COPIED:
                raise Invalid.field(place, f"copies more than {_MAX_COPIED:,} bytes, together with those before it")
            shifted += _shifts(data, operation)
            if shifted > _MAX_SHIFTED:
                raise Invalid.field(place, "inserts and removes too much in long arrays: send several patches")
            data = jsonpatch.JsonPatch([operation]).apply(data, in_place=True)
        except RecursionError:
            raise Invalid.field(place, "is nested too deeply") from None
        except _REJECTED as problem:
            raise Invalid.field(place, str(problem)) from None
    return data


def merged(data: Any, change: Any) -> Any:
    """`data` after a JSON Merge Patch, which replaces everything but objects. It is changed in place."""
    if not isinstance(change, dict):
        return change
    result = data if isinstance(data, dict) else {}
    pending = [(result, change)]
    while pending:
        target, given = pending.pop()
        for key, value in given.items():
            if value is None:
                target.pop(key, None)
            elif isinstance(value, dict):
                if not isinstance(target.get(key), dict):
                    target[key] = {}
                pending.append((target[key], value))
            else:
                target[key] = value
    return result


def _copies(data: Any, operation: dict[str, Any]) -> int:
    """Bytes of JSON that an operation copies: each copy of a copy doubles, so patches of 1 kB could write gigabytes."""
    source = operation.get("from")
    if operation.get("op") != "copy" or not isinstance(source, str):
        return 0
    return len(msgspec.json.encode(jsonpointer.resolve_pointer(data, source), enc_hook=plain))


def _shifts(data: Any, operation: dict[str, Any]) -> int:
    """Elements of arrays that an operation shifts, at most: an insertion into a million takes a millisecond."""
    if operation.get("op") not in ("add", "copy", "move", "remove"):
        return 0
    count = 0
    for place in (operation.get("path"), operation.get("from")):
        if isinstance(place, str) and "/" in place:
            parent = jsonpointer.resolve_pointer(data, place.rpartition("/")[0], None)
            count += len(parent) if isinstance(parent, list) else 0
    return count


async def _base(database: Database, actor: Actor, project_id: ObjectId, based_on: Collection[int] | None) -> Canvas:
    now = await read(database, actor, project_id)
    if based_on is not None and now.canvas_revision not in based_on:
        raise RevisionConflict(now.canvas_revision)
    return now


def _mine(actor: Actor, project_id: ObjectId) -> dict[str, Any]:
    return {"_id": project_id, "userId": actor.require_user()}


def _found(project: V | None) -> V:
    if project is None:
        raise NotFound("No such project")
    return project


@background
def _writes_by_others(*, database: Database, feed: Feed) -> Part:
    others = WritesByOthers(database, feed)
    return Part("projects.canvas", others.run, lease=True)


class Follower:
    """Follows changes of projects, in the process that runs it. `_heard` notes a change and sets `_heard_of`; `_work` then
    handles all that were noted.
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
    """Increments the revision of canvases that another application has written."""

    _waits = "revisions of canvases wait"

    def __init__(self, database: Database, feed: Feed) -> None:
        super().__init__(database, feed)
        self._written: set[ObjectId] = set()
        self._last: dict[ObjectId, int] = {}

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
