"""Versions of a project's canvas: kept on demand or automatically, compared, restored.

A version names its content by hash (`contents`). The bytes of contents count as storage of their owner: they
are part of the project's `storageSize`, and of the gauge, in the transaction that changes them. A deleted
project keeps its versions until it is purged (`trash`).

Automatic versions are made by jobs, so a save costs no more. The part `projects.versions` follows the change
stream and enqueues at most one job for each project and interval, and one for every so many revisions.
Changes during a gap of the stream are kept with the project's next change.
"""

import asyncio
import contextlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid, LimitExceeded, NotFound
from ximler.core.ids import Position
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.changes import Change, Feed
from ximler.database.collection import Page
from ximler.metering.limits.plans import limits_of
from ximler.metering.quota import gauges
from ximler.projects import access, bases, canvas, contents, differences, packing
from ximler.projects.bases import Stored
from ximler.projects.projects import RevisionConflict
from ximler.runtime import Part, background
from ximler.schema.canvas_version import CANVAS_VERSIONS, CanvasVersion
from ximler.schema.document import AT_WRITE, Document

__all__ = [
    "MAX_NAME",
    "CanvasVersion",
    "add",
    "changes",
    "content",
    "content_file",
    "create",
    "delete",
    "get",
    "keep_automatically",
    "page",
    "restore",
    "update",
]

F = TypeVar("F")

MAX_NAME = 200
MOST = 1000  # versions of a project
_RESTORES = 5  # attempts, while others save
_REMEMBERED = 10_000
_log = structlog.get_logger("ximler.projects")
_comparisons = ThreadPoolExecutor(1, thread_name_prefix="comparisons")  # other work has threads of its own
_turns: WeakValueDictionary[ObjectId, asyncio.Lock] = WeakValueDictionary()  # of users who compare


@access.editor
async def create(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    *,
    name: str | None = None,
    pinned: bool = True,
    automatic: bool = False,
) -> CanvasVersion:
    """Keep the canvas as it is now, even if an equal version is kept.
    Raises NotFound, Invalid, LimitExceeded."""
    name = _name(name)
    now, text = await _source(database, {"_id": project_id, "userId": actor.require_user()})
    return await _keep(database, now, text, name=name, pinned=pinned, automatic=automatic, most=MOST)


async def add(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    data: Any,
    *,
    text: bytes | None,
    name: str | None,
    pinned: bool,
    automatic: bool,
    revision: int,
    created_at: datetime,
) -> CanvasVersion:
    """Keep another canvas than the current one as a version, for an import.
    Raises NotFound, Invalid, LimitExceeded."""
    given = Stored(id=project_id, user_id=actor.require_user(), canvas_data=data, canvas_revision=revision)
    if (size := len(await asyncio.to_thread(packing.plain, data, text))) > packing.MOST:
        raise Invalid.field("canvasData", f"{size:,} bytes are more than a version can have")
    return await _keep(
        database,
        given,
        text,
        name=_name(name),
        pinned=pinned,
        automatic=automatic,
        most=MOST,
        created_at=min(created_at, database.clock.now()),
    )


@access.reader
async def page(
    database: Database, actor: Actor, project_id: ObjectId, *, first: int = 20, after: Position | None = None
) -> Page[CanvasVersion]:
    """Versions of one of the actor's projects, newest first, without their content. Raises NotFound."""
    await canvas.revision_of(database, actor, project_id)
    return await database[CANVAS_VERSIONS].page(_of(actor.require_user(), project_id), first=first, after=after)


@access.reader
async def get(database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId) -> CanvasVersion:
    """One version, without its content. Raises NotFound, also if its project is deleted."""
    await canvas.revision_of(database, actor, project_id)
    return await _get(database, actor, project_id, version_id)


@access.reader
async def content(database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId) -> Any:
    """The canvas of a version. Raises NotFound, Damaged."""
    return (await _content(database, await get(database, actor, project_id, version_id)))[0]


@access.reader
async def content_file(database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId) -> bytes:
    """The canvas of a version as text: as it was imported, or as JSON. Raises NotFound, Damaged."""
    data, text = await _content(database, await get(database, actor, project_id, version_id))
    return await asyncio.to_thread(canvas.encoded, data) if text is None else text


@access.reader
async def changes(
    database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId, *, to: ObjectId | None = None
) -> list[dict[str, Any]]:
    """A JSON Patch from a version to another, or to the canvas as it is. Raises NotFound, TooDifferent."""
    turn = _turns.setdefault(actor.require_user(), asyncio.Lock())
    async with turn:  # a comparison of large canvases takes seconds of a processor, and their memory
        before = await content(database, actor, project_id, version_id)
        if to is None:
            after = (await canvas.read(database, actor, project_id)).canvas_data
        else:
            after, _ = await _content(database, await _get(database, actor, project_id, to))
        return await asyncio.get_running_loop().run_in_executor(_comparisons, differences.between, before, after)


@access.editor
async def update(
    database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId, given: dict[str, Any]
) -> CanvasVersion:
    """Change `name` (None removes it) or `pinned` of a version. Raises NotFound, Invalid."""
    await canvas.revision_of(database, actor, project_id)
    patch: dict[str, Any] = {}
    for key, value in given.items():
        match key:
            case "name":
                patch["name"] = _name(value)
            case "pinned" if isinstance(value, bool):
                patch["pinned"] = value
            case "pinned":
                raise Invalid.field("pinned", "must be true or false")
            case _:
                raise Invalid.field(key, "is not a field of a version that can be changed")
    if not patch:
        return await _get(database, actor, project_id, version_id)
    where = {"_id": version_id, **_of(actor.require_user(), project_id)}
    return _found(await database[CANVAS_VERSIONS].find_and_patch(where, {"$set": patch}))


@access.editor
async def delete(database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId) -> None:
    """Delete a version and release its content's bytes,
    unless another version has the same. Raises NotFound."""
    user_id = actor.require_user()
    await canvas.revision_of(database, actor, project_id)

    async def write(transaction: Database) -> None:
        version = await _get(transaction, actor, project_id, version_id)
        await _remove(transaction, [version])
        await _settle(transaction, user_id, project_id)

    await database.transaction(write)


@access.editor
async def restore(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    version_id: ObjectId,
    *,
    based_on: Collection[int] | None = None,
) -> int:
    """Make a version's canvas the current one, as a new revision.
    Before, the canvas as it is becomes a version.

    Returns the new revision. With `based_on`, only a canvas at one of these revisions is replaced. Raises
    NotFound, LimitExceeded, RevisionConflict.
    """
    data, file = await _content(database, await get(database, actor, project_id, version_id))
    for attempt in range(_RESTORES):
        now, text = await _source(database, {"_id": project_id, "userId": actor.require_user()})
        revision = now.canvas_revision or 0
        if based_on is not None and revision not in based_on:
            raise RevisionConflict(revision)
        await _keep(database, now, text, automatic=True, if_new=True, most=MOST)
        try:
            return await canvas.replace(
                database, actor, project_id, data, based_on=(revision,), any_keys=True, text=file
            )
        except RevisionConflict:
            if based_on is not None or attempt == _RESTORES - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


class Due(Document, kw_only=True):
    project_id: ObjectId


@outbox.job("projects.keep_version", Due)
async def keep_automatically(payload: Due, *, database: Database, settings: Settings) -> None:
    """Keep the canvas as a version if the newest one is another,
    and delete the oldest ones without name and pin.

    Idempotent. Nothing is kept without room in the plan, or for a plan whose customers have none kept.
    """
    project_id = payload.project_id
    found = await bases.read_with_text(database, {"_id": project_id})
    if found is None or not isinstance(found[0].user_id, ObjectId):  # another application may have written anything
        return
    now, text = found
    with contextlib.suppress(NotFound):  # deleted meanwhile
        kept = settings.versions_kept((await limits_of(database, now.user_id)).plan_name)
        if not kept:
            return
        try:
            await _keep(database, now, text, automatic=True, if_new=True)
        except LimitExceeded as error:
            _log.info("no version kept", project=str(project_id), reason=error.message)
        await _prune(database, now.user_id, project_id, kept)


async def _keep(
    database: Database,
    now: Stored,
    text: bytes | None,
    *,
    name: str | None = None,
    pinned: bool = False,
    automatic: bool = False,
    if_new: bool = False,
    most: int | None = None,
    created_at: datetime = AT_WRITE,
) -> CanvasVersion:
    """Store a version; with `if_new`, only if the newest has other content.
    Raises LimitExceeded if the project has `most`.

    Of two at once, one conflicts, and finds the other's when it runs again.
    """
    mine = _of(now.user_id, now.id)

    async def write(transaction: Database) -> CanvasVersion:
        if if_new:
            newest = await transaction[CANVAS_VERSIONS].find_one(mine, sort=contents.NEWEST)
            if newest is not None and newest.digest == made.digest:
                return newest
        if most is not None and await transaction[CANVAS_VERSIONS].count(mine) >= most:
            raise LimitExceeded(f"The project has {most:,} versions, the most that are kept: delete some")
        version = CanvasVersion(
            user_id=now.user_id,
            project_id=now.id,
            revision=now.canvas_revision or 0,
            digest=made.digest,
            size_bytes=made.size_bytes,
            stored_bytes=await contents.keep(transaction, mine, made),
            assets=made.assets,
            name=name,
            pinned=pinned,
            automatic=automatic,
            created_at=created_at,
        )
        stored = await transaction[CANVAS_VERSIONS].insert(version)
        await _settle(transaction, version.user_id, version.project_id)
        return stored

    made = await contents.packed(database, now, text)
    try:
        return await database.transaction(write)
    except contents.CopyGone:
        made = await contents.packed(database, now, text, alone=True)
        return await database.transaction(write)


async def _prune(database: Database, user_id: ObjectId, project_id: ObjectId, kept: int) -> None:
    """Delete versions that have no name and no pin, but for the newest `kept`."""

    async def write(transaction: Database) -> None:
        surplus = await transaction[CANVAS_VERSIONS].aggregate(
            [
                {"$match": {**_of(user_id, project_id), "pinned": False, "name": None}},
                {"$sort": {"createdAt": -1, "_id": -1}},
                {"$skip": kept},
                {"$project": {"_id": 1}},
            ]
        )
        if surplus:
            where = {**_of(user_id, project_id), "_id": {"$in": [each["_id"] for each in surplus]}}
            await _remove(transaction, await transaction[CANVAS_VERSIONS].find(where))
            await _settle(transaction, user_id, project_id)

    await database.transaction(write)


async def _remove(transaction: Database, versions: list[CanvasVersion]) -> None:
    for version in versions:
        mine = _of(version.user_id, version.project_id)
        await transaction[CANVAS_VERSIONS].delete({"_id": version.id, **mine})
        await contents.release(transaction, mine, version.digest)


async def _settle(transaction: Database, user_id: ObjectId, project_id: ObjectId) -> None:
    """Count the bytes of the project's contents in its `storageSize` and in its owner's gauge. Raises
    QuotaExceeded, NotFound for a project that was deleted meanwhile.
    """
    total = await contents.total(transaction, _of(user_id, project_id))
    mine = {"_id": project_id, "userId": user_id}
    sizes = await transaction.projects.aggregate(
        [
            {"$match": {**mine, "deletedAt": None}},
            {"$project": {"charged": gauges.CHARGED_BYTES, "versionsSize": 1, "storageRoom": 1}},
        ]
    )
    if not sizes:
        raise NotFound("No such project")
    grown = total - (sizes[0].get("versionsSize") or 0)
    if grown:
        limits = await limits_of(transaction.outside, user_id)
        await gauges.reserve(transaction, user_id, limits, storage_bytes=grown)
    size = sizes[0]["charged"] - (sizes[0].get("storageRoom") or 0)
    # Also if nothing grows: changes of a project's versions conflict,
    # so that they are counted one after the other.
    await transaction.projects.patch(mine, {"$set": {"versionsSize": total, "storageSize": size + grown}})


async def _source(database: Database, where: dict[str, Any]) -> tuple[Stored, bytes | None]:
    return _found(await bases.read_with_text(database, where), "project")


async def _get(database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId) -> CanvasVersion:
    return _found(
        await database[CANVAS_VERSIONS].find_one({"_id": version_id, **_of(actor.require_user(), project_id)})
    )


async def _content(database: Database, version: CanvasVersion) -> tuple[Any, bytes | None]:
    return await contents.read(database, _of(version.user_id, version.project_id), version.digest)


def _of(user_id: ObjectId, project_id: ObjectId) -> dict[str, Any]:
    return {"userId": user_id, "projectId": project_id}


def _name(name: Any) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip():
        raise Invalid.field("name", "is empty: leave it out, or send null")
    if len(name) > MAX_NAME:
        raise Invalid.field("name", f"is longer than {MAX_NAME} characters")
    if "\0" in name:
        raise Invalid.field("name", "must not contain a NUL byte")
    return name.strip()


def _found(found: F | None, noun: str = "version") -> F:
    if found is None:
        raise NotFound(f"No such {noun}")
    return found


@background
def _automatic(*, database: Database, feed: Feed, settings: Settings) -> Part | None:
    if not settings.keeps_versions:
        return None
    return Part("projects.versions", Automatic(database, feed, settings).run, lease=True)


class Automatic(canvas.Follower):
    """Enqueues the jobs that keep versions, as canvases change."""

    _waits = "versions of canvases wait"

    def __init__(self, database: Database, feed: Feed, settings: Settings) -> None:
        super().__init__(database, feed)
        self._every = settings.canvas_version_revisions
        self._interval = timedelta(minutes=settings.canvas_version_minutes)
        self._changed: dict[ObjectId, bool] = {}  # whether a version is due at once
        self._asked: dict[ObjectId, datetime] = {}

    async def _work(self) -> None:
        if len(self._asked) > _REMEMBERED:
            self._asked.clear()  # the keys of jobs prevent repeats, too
        while self._changed:
            self._heard_of.set()  # due again at the next round, or when the part is restarted, unless this succeeds
            project_id, at_once = next(iter(self._changed.items()))
            now = self._database.clock.now()
            # Each project's intervals begin at another time, so that jobs are spread.
            phase = self._interval * (int.from_bytes(project_id.binary[-2:], "big") / 65536)
            end = now - (now - EPOCH - phase) % self._interval + self._interval
            due = Due(project_id=project_id)
            if self._asked.get(project_id) != end:
                key = f"{keep_automatically.name}:{project_id}:{end:%Y-%m-%dT%H:%M:%S}"
                await keep_automatically.enqueue(self._database, due, dedupe_key=key, run_at=end)
                self._asked[project_id] = end
            if at_once:
                await keep_automatically.enqueue(self._database, due)
            if self._changed.get(project_id) == at_once:
                del self._changed[project_id]
        self._heard_of.clear()

    def _heard(self, change: Change) -> None:
        if not isinstance(change.id, ObjectId):  # an id of another kind is not served
            return
        revision = change.updated.get("canvasRevision")
        if revision is None and change.operation != "replace" and "canvasData" not in change.updated:
            return
        at_once = isinstance(revision, int) and revision % self._every == 0
        self._changed[change.id] = at_once or self._changed.get(change.id, False)
        self._heard_of.set()
