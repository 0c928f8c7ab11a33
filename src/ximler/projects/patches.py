"""Saves patches of records (`records`): one command for all patches of a project that wait at the same time.

The command depends on the patches only, never on the canvas, which it does not move. Its filter has the revision that this
process knows; another process's change makes it miss, and it is sent again on the new one. A client never sees that.

Properties of a few records are set by their path, 6 × as fast as the pipeline that any other change takes (1.1 MB: 4 and
25 ms), because a pipeline copies the whole document. Ids and values of users never become operators: ids are values in
filters, and property names are checked by `records.parse`.

The same command stores each client's number and outcome, and the patch in a log of the last 64 revisions. A patch that is
sent again is answered from these, in whichever process, and is applied once.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import bson
import msgspec
import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Invalid, LimitExceeded, NotFound, Unavailable, XimlerError
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.failures import RefusedChanges
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import records, storage
from ximler.projects.projects import next_revision
from ximler.projects.records import Composed, RecordPatch

__all__ = ["LOGGED", "MAX_LOGGED", "Outcome", "Saver", "SeqPassed"]

_log = structlog.get_logger("ximler.projects")

LOGGED = 64  # revisions
MAX_LOGGED = 4096  # bytes of a patch in the log
MAX_CLIENTS = 64  # whose latest patch is known
_KEPT_CLIENTS = 48  # of these, when one more would be too many
_MAX_REJECTED = 100  # ids in an answer
_MAX_WAITING = 1000  # patches of a project
_MAX_BATCH = 2_000_000  # bytes of JSON that are saved together
_MAX_QUEUED = 40_000_000  # bytes of JSON of the patches that wait for a project
_MAX_COMPARED = 10_000_000  # ids of a change times records of the canvas: a second or two of the server's time
_BY_PATH = 8  # records: of more, the pipeline is faster
_MAX_ATTEMPTS = 100
_REST_S = 30.0  # after the last patch the project is measured, and its room returned
_LOOK_S = 1.0
_REMEMBERED = 10_000  # projects
_MARGIN = 128  # bytes that a change may add besides its values: the list's name, its place in the log


class Outcome(msgspec.Struct, frozen=True):
    """The revision that has the patch, and the ids that it set in vain, because no record has them: the first 100."""

    revision: int
    rejected: list[str] = []


class SeqPassed(Conflict):
    """The client has sent a later patch already, so this one cannot be applied in its order."""

    code = "SEQ_PASSED"


class _Mark(msgspec.Struct, frozen=True):
    """The latest patch of a client: its number, its revision, and the ids that it set in vain."""

    s: int
    r: int
    x: list[str] = []


class _Waiting:
    """A patch, and its answer."""

    __slots__ = ("answer", "client", "given", "ids", "patch", "seq", "size")

    def __init__(self, given: Any, size: int) -> None:
        self.client, self.seq = records.sender(given)
        self.given = given
        self.size = size
        self.ids = sum(
            len(part) for name in ("put", "set", "remove") if isinstance(part := given.get(name), dict | list)
        )
        self.patch: RecordPatch | None = None
        self.answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class _Project:
    """A project that is edited, as this process knows it. The marks are those of `revision`."""

    def __init__(self, project_id: ObjectId, user_id: ObjectId) -> None:
        self.id, self.user_id = project_id, user_id
        self.mine = {"_id": project_id, "userId": user_id}
        self.waiting: deque[_Waiting] = deque()
        self.pending: dict[tuple[str, int], _Waiting] = {}
        self.saving: asyncio.Task[None] | None = None
        self.known = False  # False: look before the next change
        self.revision: int | None = None  # None: another application has written the whole project
        self.last = 0  # the highest revision that this process has seen
        self.room = 0
        self.records = 0  # at least
        self.usable = True
        self.declaration: Any = None
        self.declared = records.DEFAULT
        self.marks: dict[str, _Mark | None] = {}
        self.saved_at: float | None = None  # None: measured since


class Saver:
    """One per process. `run` measures projects again when they are at rest."""

    def __init__(self, database: Database, *, rest_s: float = _REST_S) -> None:
        self._database = database
        self._rest_s = rest_s
        self._projects: OrderedDict[tuple[ObjectId, ObjectId], _Project] = OrderedDict()

    async def save(self, actor: Actor, project_id: ObjectId, given: Any, *, size: int = 0) -> Outcome:
        """Apply a patch of records, from JSON of `size` bytes. One command for all that wait at the same time.

        Other clients' changes are never a conflict. The same patch again, by its client and number, is answered as before.
        Raises NotFound, Invalid, QuotaExceeded, SeqPassed, LimitExceeded.
        """
        waiting = _Waiting(given, size)
        project = self._known(project_id, actor.require_user())
        if twin := project.pending.get((waiting.client, waiting.seq)):
            waiting = twin
        else:
            queued = sum(each.size for each in project.waiting)
            if len(project.waiting) >= _MAX_WAITING or (queued and queued + size > _MAX_QUEUED):
                raise LimitExceeded("Too many changes of this project wait: try again in a moment", retry_after_s=1)
            project.waiting.append(waiting)
            project.pending[waiting.client, waiting.seq] = waiting
            if project.saving is None:
                project.saving = asyncio.create_task(self._save_all(project), name=f"canvas {project_id}")
        return await asyncio.shield(waiting.answer)  # a client that leaves does not take its patch back

    async def run(self, stop: asyncio.Event) -> None:
        """Measure projects that are at rest, until `stop` is set, and then those that are not."""
        while not await pause(stop, _LOOK_S):
            await self._measure(time.monotonic() - self._rest_s)

    async def close(self) -> None:
        """Save waiting patches, and measure the projects."""
        if saving := [project.saving for project in self._projects.values() if project.saving]:
            await asyncio.wait(saving)
        await self._measure(time.monotonic())

    def _known(self, project_id: ObjectId, user_id: ObjectId) -> _Project:
        key = project_id, user_id
        project = self._projects.get(key)
        if project is None:
            project = self._projects[key] = _Project(project_id, user_id)
            for oldest in list(self._projects)[: max(0, len(self._projects) - _REMEMBERED)]:
                if not self._projects[oldest].pending:
                    del self._projects[oldest]
        else:
            self._projects.move_to_end(key)
        return project

    async def _measure(self, before: float) -> None:
        for project in list(self._projects.values()):
            if project.saved_at is None or project.saved_at > before or project.saving is not None:
                continue
            project.saved_at, project.room = None, 0  # a save meanwhile is measured later
            try:
                await storage.resize(self._database, project.user_id, project.id, room=0)
            except (Invalid, NotFound, QuotaExceeded) as error:  # deleted since, or written by others beyond the plan
                _log.debug("project not measured", project=str(project.id), reason=error.message)
            except BaseException as error:
                project.saved_at = time.monotonic()
                if not isinstance(error, Unavailable):
                    raise

    async def _save_all(self, project: _Project) -> None:
        try:
            while project.waiting:
                batch = _batch(project)
                try:
                    await self._save(project, batch)
                except XimlerError as error:
                    project.known = False
                    if len(batch) > 1 and not isinstance(error, Unavailable | NotFound):
                        for waiting in batch:  # so that only the patch that causes it fails
                            await self._save_one(project, waiting)
                    else:
                        _fail(project, batch, error)
                except BaseException as error:
                    project.known = False
                    _fail(project, [*batch, *project.waiting], error)
                    project.waiting.clear()
                    raise
        finally:
            project.saving = None

    async def _save_one(self, project: _Project, waiting: _Waiting) -> None:
        try:
            await self._save(project, [waiting])
        except XimlerError as error:
            project.known = False
            _fail(project, [waiting], error)

    async def _save(self, project: _Project, batch: list[_Waiting]) -> None:
        """Apply the patches of a batch, and answer them."""
        whole = False
        for _ in range(_MAX_ATTEMPTS):
            batch = [waiting for waiting in batch if not waiting.answer.done()]
            if not batch:
                return
            if not project.known or any(waiting.client not in project.marks for waiting in batch):
                await self._look(project, [waiting.client for waiting in batch])
            batch = _due(project, batch)
            if not batch:
                return
            composed = records.compose([waiting.patch for waiting in batch if waiting.patch is not None])
            change = _Change(project, batch, composed, self._database.clock.now())
            guarded = True
            if project.room < change.grows:
                try:
                    project.room = await storage.resize(
                        self._database, project.user_id, project.id, room=change.grows, step=storage.STEP
                    )
                except QuotaExceeded:
                    if composed.put or composed.set:
                        raise
                    guarded = False  # removing is always possible
            by_path = None if whole else change.by_path()
            if by_path is None and composed.ids > (most := _most_ids(project)):
                problem = f"names {composed.ids:,} records: {most:,} at once are the most in a canvas of this size"
                raise Invalid.field("patch", problem)
            try:
                if by_path is not None:
                    where, update, filters = by_path
                    done = await self._write(change.where(guarded) | where, update, filters)
                else:
                    where, stages = change.pipeline()
                    done = await self._write(change.where(guarded) | where, stages)
            except (RefusedChanges, Invalid):
                if by_path is None:
                    raise
                done = False
            if done:
                project.saved_at = time.monotonic()
                project.revision = project.last = change.revision
                project.room -= change.grows
                project.marks |= change.marks
                project.records += len(composed.put)
                if by_path is None and any(composed.depends):
                    await self._look(project, [waiting.client for waiting in batch])
                _due(project, batch)
                return
            before = project.revision
            await self._look(project, [waiting.client for waiting in batch])
            if project.revision == before and project.room >= change.grows:
                if not project.usable:
                    raise Invalid.field(
                        "patch",
                        f"needs a canvas that is an object, with the list {project.declared.list!r} in it, or none",
                    )
                whole = True  # a record is missing, or there already
        raise Unavailable("The project is changed by too many others: try again in a moment")

    async def _write(
        self, where: dict[str, Any], update: Any, filters: Sequence[Mapping[str, Any]] | None = None
    ) -> bool:
        return await self._database.projects.rewrite(where, update, array_filters=filters)

    async def _look(self, project: _Project, clients: Sequence[str]) -> None:
        """Read the state that a change depends on. Raises NotFound, Invalid."""
        named = f"$canvasData.{project.declared.list}"
        found = await self._database.projects.aggregate(
            [
                {"$match": {**project.mine, "deletedAt": None}},
                {
                    "$project": {
                        "revision": "$canvasRevision",
                        "room": {"$ifNull": ["$storageRoom", 0]},
                        "declaration": "$settings.records",
                        "marks": {client: f"$canvasClients.{client}" for client in clients},
                        "clients": {
                            "$size": {
                                "$objectToArray": {"$cond": [storage.object_at("canvasClients"), "$canvasClients", {}]}
                            }
                        },
                        "kept": {name: {"$type": f"${name}"} for name in storage.CONTENT[2:]},
                        "kinds": [{"$type": "$canvasData"}, {"$type": named}],
                        "records": {"$cond": [{"$isArray": [named]}, {"$size": named}, 0]},
                    }
                },
            ]
        )
        if not found:
            raise NotFound("No such project")
        now = found[0]
        if odd := [name for name, kind in now["kept"].items() if kind not in ("missing", "object")]:
            # Written by another application. An update could not set anything in it.
            _log.warning("log of patches removed", project=str(project.id), fields=odd)
            await self._database.projects.patch(project.mine, {"$unset": dict.fromkeys(odd, "")})
        marks = now.get("marks", {})
        if now["clients"] >= MAX_CLIENTS and not all(client in marks for client in clients):
            await self._database.projects.rewrite(project.mine, _FORGET_CLIENTS)
        if now.get("declaration") != project.declaration:
            project.declared = records.declared(now.get("declaration"))
            project.declaration = now.get("declaration")
            for waiting in project.pending.values():
                waiting.patch = None
        revision = now.get("revision")
        if revision != project.revision:
            project.marks.clear()
        project.known, project.room = True, int(now["room"])
        project.revision = None if revision is None else int(revision)
        project.last = max(project.last, project.revision or 0)
        project.marks |= {client: _mark(marks.get(client)) for client in clients}
        project.records = now["records"]
        canvas, named = now["kinds"]
        project.usable = canvas in ("missing", "null") or (canvas == "object" and named in ("missing", "null", "array"))


def _mark(stored: Any) -> _Mark | None:
    try:
        return None if stored is None else msgspec.convert(stored, _Mark, strict=False)
    except msgspec.ValidationError:  # written by another application
        return None


_FORGET_CLIENTS: list[dict[str, Any]] = [
    {
        "$set": {
            "canvasClients": {
                "$arrayToObject": {
                    "$slice": [
                        {"$sortArray": {"input": {"$objectToArray": "$canvasClients"}, "sortBy": {"v.r": -1}}},
                        _KEPT_CLIENTS,
                    ]
                }
            }
        }
    }
]


class _Change:
    """The update of a batch, on the state that the process knows."""

    def __init__(self, project: _Project, batch: Sequence[_Waiting], composed: Composed, now: datetime) -> None:
        self._project = project
        self._composed = composed
        self._now = now
        self.revision = next_revision(project.revision, now, above=project.last)
        self.marks = {
            waiting.client: _Mark(waiting.seq, self.revision, gone[:_MAX_REJECTED])
            for waiting, gone in zip(batch, composed.rejected, strict=True)
        }
        self._depends = dict(zip(self.marks, composed.depends, strict=True))
        event = {
            "by": [[waiting.client, waiting.seq] for waiting in batch],
            "put": list(composed.put.values()),
            "set": composed.set,
            "remove": composed.remove,
        }
        self._logged: dict[str, Any] = {"r": self.revision}
        patch = msgspec.json.encode({name: value for name, value in event.items() if value})
        if len(patch) <= MAX_LOGGED:
            self._logged["p"] = patch
        sizes = len(bson.encode({"p": list(composed.put.values()), "s": list(composed.set.values())}))
        self.grows = sizes + 16 * composed.ids + len(self._logged.get("p", b"")) + _MARGIN
        for mark, depends in zip(self.marks.values(), composed.depends, strict=True):  # the ids that were set in vain
            self.grows += sum(len(name.encode()) + 8 for name in [*mark.x, *depends][:_MAX_REJECTED])

    def where(self, guarded: bool) -> dict[str, Any]:
        project = self._project
        where = {
            **project.mine,
            "canvasRevision": project.revision,
            "settings.records": None if project.declaration is None else {"$eq": project.declaration},
        }
        return where | {"storageRoom": {"$gte": self.grows}} if guarded else where

    def by_path(self) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]] | None] | None:
        """Filter, update and array filters where operators can do it: for changes of one kind."""
        composed, declared = self._composed, self._project.declared
        place = f"canvasData.{declared.list}"
        ids = f"{place}.{declared.id}"
        if composed.ids > _BY_PATH or sum(map(bool, (composed.put, composed.set, composed.remove))) != 1:
            return None
        if any(name not in composed.set for depends in composed.depends for name in depends):
            # A record is set and then removed: whether it was there is the answer of one of the patches.
            return None
        update = self._bookkeeping()
        if composed.remove:
            update["$pull"] = {place: {declared.id: {"$in": composed.remove}}}
            return {}, update, None
        if composed.put:
            update["$push"] = {place: {"$each": list(composed.put.values())}}
            return {ids: {"$nin": list(composed.put)}}, update, None
        if any("" in properties for properties in composed.set.values()) or not all(composed.set.values()):
            return None
        if len(composed.set) == 1:
            ((name, properties),) = composed.set.items()
            update["$set"] |= {f"{place}.$.{key}": value for key, value in properties.items()}
            return {ids: name}, update, None
        filters = []
        for number, (name, properties) in enumerate(composed.set.items()):
            update["$set"] |= {f"{place}.$[r{number}].{key}": value for key, value in properties.items()}
            filters.append({f"r{number}.{declared.id}": name})
        return {ids: {"$all": list(composed.set)}}, update, filters

    def pipeline(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Filter and update for any change."""
        composed, declared = self._composed, self._project.declared
        place = f"canvasData.{declared.list}"
        ids = {"$ifNull": [f"${place}.{declared.id}", []]}
        this = f"$$this.{declared.id}"
        kept: Any = {"$ifNull": [f"${place}", []]}
        if composed.remove:
            removed = {"$in": [this, {"$literal": composed.remove}]}
            kept = {"$filter": {"input": kept, "cond": {"$not": [removed]}}}
        names = [*composed.set, *composed.put]
        values = [*composed.set.values(), *composed.put.values()]
        found = {"$arrayElemAt": ["$$values", "$$at"]}
        merged = {"$mergeObjects": ["$$this", found]}
        changed = {
            "$switch": {
                "branches": [
                    {"case": {"$lt": ["$$at", 0]}, "then": "$$this"},
                    {"case": {"$lt": ["$$at", len(composed.set)]}, "then": merged},
                ],
                "default": found,
            }
        }
        at = {"$indexOfArray": [{"$literal": names}, this]}
        mapped = {"$map": {"input": kept, "in": {"$let": {"vars": {"at": at}, "in": changed}}}}
        puts = {"$slice": ["$$values", len(composed.set), max(1, len(composed.put))]}
        added = {"$filter": {"input": puts, "cond": {"$not": [{"$in": [this, "$$known"]}]}}}
        parts = [mapped, added] if composed.put else [mapped]
        listed = {"$let": {"vars": {"values": {"$literal": values}, "known": ids}, "in": {"$concatArrays": parts}}}
        stages = self._bookkeeping()
        literal = {path: {"$literal": value} for path, value in stages["$set"].items()}
        for client, depends in self._depends.items():
            if depends:
                mark = self.marks[client]
                missing: Any = {"$setDifference": [{"$literal": depends}, ids]}
                gone: Any = {"$slice": [{"$concatArrays": [{"$literal": mark.x}, missing]}, _MAX_REJECTED]}
                literal[f"canvasClients.{client}"] = {"s": {"$literal": mark.s}, "r": {"$literal": mark.r}, "x": gone}
        for path, amount in stages["$inc"].items():
            literal[path] = {"$add": [{"$ifNull": [f"${path}", 0]}, amount]}
        literal["canvasData"] = {"$mergeObjects": [{"$ifNull": ["$canvasData", {}]}, {declared.list: listed}]}
        usable = [
            {"canvasData": None},
            {
                "canvasData": {"$type": "object", "$not": {"$type": "array"}},
                "$or": [{place: {"$type": "array"}}, {place: None}],
            },
        ]
        return {"$or": usable}, [{"$set": literal}]

    def _bookkeeping(self) -> dict[str, Any]:
        """The parts that every update has."""
        marks = {
            f"canvasClients.{client}": {name: value for name, value in msgspec.structs.asdict(mark).items() if value}
            for client, mark in self.marks.items()
        }
        return {
            "$set": {
                **marks,
                f"canvasLog.{self.revision % LOGGED}": self._logged,
                "canvasRevision": self.revision,
                "updatedAt": self._now,
            },
            "$inc": {"storageSize": self.grows, "storageRoom": -self.grows},
        }


def _most_ids(project: _Project) -> int:
    """Of a change of many records: the server compares each with each record of the canvas."""
    return max(_BY_PATH, min(records.MAX_RECORDS, _MAX_COMPARED // max(1, project.records)))


def _batch(project: _Project) -> list[_Waiting]:
    """The next patches to save together: in their order, and one of each client."""
    waiting, most = project.waiting, _most_ids(project)
    batch = [waiting.popleft()]
    clients, size, ids = {batch[0].client}, batch[0].size, batch[0].ids
    while waiting:
        following = waiting[0]
        size, ids = size + following.size, ids + following.ids
        if size > _MAX_BATCH or ids > most or following.client in clients:
            break
        clients.add(following.client)
        batch.append(waiting.popleft())
    return batch


def _due(project: _Project, batch: Sequence[_Waiting]) -> list[_Waiting]:
    """The patches that are not applied yet, parsed; the others are answered."""
    due = []
    for waiting in batch:
        mark = project.marks.get(waiting.client)
        if mark is not None and mark.s == waiting.seq:
            project.pending.pop((waiting.client, waiting.seq), None)
            if not waiting.answer.done():
                waiting.answer.set_result(Outcome(mark.r, mark.x))
        elif mark is not None and mark.s > waiting.seq:
            passed = f"Patch {mark.s} of this client was saved before patch {waiting.seq}: send one after the other"
            _fail(project, [waiting], SeqPassed(passed))
        else:
            try:
                waiting.patch = waiting.patch or records.parse(waiting.given, project.declared)
            except Invalid as error:
                _fail(project, [waiting], error)
            else:
                due.append(waiting)
    return due


def _fail(project: _Project, batch: Sequence[_Waiting], error: BaseException) -> None:
    for waiting in batch:
        project.pending.pop((waiting.client, waiting.seq), None)
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
            waiting.answer.exception()  # retrieved: the client may have left
