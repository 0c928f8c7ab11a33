"""Saves patches of records (`records`): one command for all patches of a project that wait at the same time.

The command depends on the patches only, never on the canvas, which it does not move. Its filter has the
revision that this process knows; another process's change makes it miss, and it is sent again on the new one.
A client never sees that.

Properties of records are set by their paths, 6 × as fast as the pipeline that any other change takes (1.1 MB:
4 and 25 ms), because a pipeline copies the whole document. Those of several records are set by their places
in the list, which the process reads once and the filter asserts. A large canvas (`bases`) costs less: the
patch is appended to those since the base, and the ids of records, which decide what a patch sets in vain, are
kept in memory. A patch that is too large for that, or that makes a canvas large, is applied here, and the
whole is stored anew.

Ids and values of users never become operators: ids are values in filters, and property names are checked by
`records.parse`.

The same command stores each client's latest number and outcome, and in a log of the last 64 revisions the
patch with the numbers and outcomes of its senders. Any process answers a repeated patch from these, so it is
applied once.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, LimitExceeded, NotFound, Unavailable, XimlerError
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.failures import RefusedChanges
from ximler.metering.limits.plans import limits_of
from ximler.metering.quota.gauges import QuotaExceeded
from ximler.projects import access, bases, compaction, records, storage
from ximler.projects.bases import Fresh
from ximler.projects.edits import BY_PATH, LOGGED, MAX_LOGGED, Change, Edited, Mark, Outcome, Recent, Waiting
from ximler.projects.records import Composed

__all__ = ["LOGGED", "MAX_LOGGED", "Outcome", "Recent", "Saver", "SeqPassed"]

_log = structlog.get_logger("ximler.projects")

MAX_CLIENTS = 64  # clients whose latest patch is known, and whose patches are saved together
_KEPT_CLIENTS = 48  # of these, when one more would be too many
_WORTH_A_THREAD = 500_000  # bytes of JSON whose check would keep others waiting
_MAX_WAITING = 1000  # patches of a project
_MAX_BATCH = 2_000_000  # bytes of JSON that are saved together
_MAX_QUEUED = 40_000_000  # bytes of JSON of the patches that wait for a project
_MAX_COMPARED = 10_000_000  # ids of a change times records of the canvas: a second or two of the server's time
_MAX_ATTEMPTS = 100
_REST_S = 30.0  # after the last patch the project is measured, and its room returned
_LOOK_S = 1.0
_REMEMBERED = 10_000  # projects
_MAX_LARGE = 50  # canvases whose ids are known
_MAX_IDS = 1_000_000  # of all of them
_MAX_PLACES = 2_000  # of a project, which are known


class SeqPassed(Invalid):
    """A later patch of the client was saved, and this one is not, or no longer, in the log, so it cannot be
    applied in order. Not a conflict with other clients."""

    code = "SEQ_PASSED"


class Saver:
    """One per process. `run` measures projects again when they are at rest."""

    def __init__(self, database: Database, *, rest_s: float = _REST_S) -> None:
        self._database = database
        self._rest_s = rest_s
        self._projects: OrderedDict[tuple[ObjectId, ObjectId], Edited] = OrderedDict()
        self.recent = Recent()
        self._large: OrderedDict[ObjectId, Edited] = OrderedDict()  # whose ids are known

    async def save(self, actor: Actor, project_id: ObjectId, given: Any, *, size: int = 0) -> Outcome:
        """Apply a patch of records, from JSON of `size` bytes.
        One command for all that wait at the same time.

        Other clients' changes are never a conflict. The same patch again, by its client and number, is
        answered as before. Raises NotFound, Invalid, QuotaExceeded, SeqPassed, LimitExceeded.
        """

        async def save(acting: Actor) -> Outcome:
            return await self._save_for(acting.require_user(), project_id, given, size)

        return await access.through(self._database, actor, project_id, "EDITOR", save)

    async def _save_for(self, user_id: ObjectId, project_id: ObjectId, given: Any, size: int) -> Outcome:
        waiting = Waiting(given, size)
        project = self._known(project_id, user_id)
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

    def _known(self, project_id: ObjectId, user_id: ObjectId) -> Edited:
        key = project_id, user_id
        project = self._projects.get(key)
        if project is None:
            project = self._projects[key] = Edited(project_id, user_id)
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

    async def _save_all(self, project: Edited) -> None:
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

    async def _save_one(self, project: Edited, waiting: Waiting) -> None:
        try:
            await self._save(project, [waiting])
        except XimlerError as error:
            project.known = False
            _fail(project, [waiting], error)

    async def _save(self, project: Edited, batch: list[Waiting]) -> None:
        """Apply the patches of a batch, and answer them."""
        whole = False
        for _ in range(_MAX_ATTEMPTS):
            batch = [waiting for waiting in batch if not waiting.answer.done()]
            if not batch:
                return
            for waiting in batch:
                if waiting.patch is None and waiting.size > _WORTH_A_THREAD:
                    with contextlib.suppress(Invalid):  # `_due` answers it
                        waiting.patch = await asyncio.to_thread(records.parse, waiting.given, project.declared)
            if not project.known or any(waiting.client not in project.marks for waiting in batch):
                await self._look(project, [waiting.client for waiting in batch])
            if doubtful := {waiting.client for waiting in batch if _is_doubtful(project, waiting)}:
                await self._find_earlier(project, doubtful)
            batch = _due(project, batch)
            if not batch:
                return
            composed = records.compose([waiting.patch for waiting in batch if waiting.patch is not None])
            change = Change(project, batch, composed, self._database.clock.now(), project.ids, self.recent)
            if project.base is not None and not project.usable:
                raise _unusable(project)
            if change.is_whole():
                if await self._save_whole(project, batch, composed):
                    return
                await self._look(project, [waiting.client for waiting in batch])
                continue
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
            if project.base is None and not whole and change.places_needed():
                await self._find_places(project, composed.set)
            by_path = change.appended() if project.base else None if whole else change.by_path()
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
                if by_path is None or project.base is not None:
                    raise
                done = False
            if done:
                project.saved_at = time.monotonic()
                project.revision = project.last = change.revision
                project.room -= change.grows
                project.marks |= change.marks
                project.records += len(composed.put)
                if composed.remove:
                    project.places.clear()
                project.size += change.grows
                if project.base is not None:
                    project.tail += len(change.patch)
                    self._count(project, change.revision, [composed])
                elif by_path is None and any(composed.depends):
                    await self._look(project, [waiting.client for waiting in batch])
                _due(project, batch)
                await self._compact(project)
                return
            before = project.revision
            project.places.clear()
            await self._look(project, [waiting.client for waiting in batch])
            if project.revision == before and project.room >= change.grows:
                if not project.usable:
                    raise _unusable(project)
                whole = True  # a record is missing, or there already
        raise Unavailable("The project is changed by too many others: try again in a moment")

    async def _save_whole(self, project: Edited, batch: list[Waiting], composed: Composed) -> bool:
        """Apply the patches here, and store the canvas anew; False if it is at another revision by now."""
        found = await bases.read(self._database, project.mine)
        if found is None:
            raise NotFound("No such project")
        if found.canvas_revision != project.revision:
            return False
        declared, old = project.declared, bases.base_of(found.canvas_base)
        if not records.lists(found.canvas_data, declared):
            raise _unusable(project)

        def applied() -> tuple[set[str], Any, Fresh | None]:
            ids = records.ids_of(found.canvas_data, declared)
            changes = [{"remove": composed.remove, "put": composed.put.values(), "set": composed.set}]
            data = records.applied(found.canvas_data, changes, declared)
            return ids, data, storage.canvas_of(data, any_keys=old is not None)[1]

        ids, data, new = await asyncio.to_thread(applied)
        change = Change(project, batch, composed, self._database.clock.now(), ids, self.recent)
        update = change.whole(data, new)
        where = change.where(False)
        if project.base is not None and old is not None:  # not compacted, nor replaced by another application, since
            where |= {"canvasBase.id": old.id, "canvasData": None}
        limits = await limits_of(self._database, project.user_id)

        async def write(transaction: Database) -> bool:
            if not await transaction.projects.rewrite(where, update):
                return False
            await bases.swap(transaction, project.mine, old=old, new=new)
            await storage.settle(transaction, project.mine, limits, wanted=0)
            return True

        if not await self._database.transaction(write):
            return False
        project.ids, project.has_records, project.saved_at = ids, True, time.monotonic()
        project.places.clear()
        self._count(project, change.revision, [composed])
        project.revision = project.last = change.revision
        project.marks |= change.marks
        _due(project, batch)
        project.known = False
        return True

    def _count(self, project: Edited, revision: int, changes: Sequence[Any]) -> None:
        """Keep the ids of a large canvas's records as they are after these changes."""
        if project.ids is None:
            return
        for change in changes:
            removed, put = (
                (change.remove, change.put) if isinstance(change, Composed) else (change["remove"], change["put"])
            )
            project.ids.difference_update(removed)
            project.ids.update(put)
        project.ids_at = revision
        self._large[project.id] = project
        self._large.move_to_end(project.id)
        known = sum(len(each.ids or ()) for each in self._large.values())
        while len(self._large) > 1 and (len(self._large) > _MAX_LARGE or known > _MAX_IDS):
            oldest = self._large.popitem(last=False)[1]
            known -= len(oldest.ids or ())
            oldest.ids = None

    async def _compact(self, project: Edited) -> None:
        """Enqueue a compaction when the patches since the base have become many."""
        base = project.base
        if base is None or project.tail < compaction.WORTH_IT or project.compacting == base.id:
            return
        if await compaction.request(self._database, project.id, base):
            project.compacting = base.id

    async def _write(
        self, where: dict[str, Any], update: Any, filters: Sequence[Mapping[str, Any]] | None = None
    ) -> bool:
        return await self._database.projects.rewrite(where, update, array_filters=filters)

    async def _find_places(self, project: Edited, names: Iterable[str]) -> None:
        """Read the places in the list of those records whose place is not known.
        The filter of the change asserts them."""
        missing = [name for name in names if name not in project.places]
        if not missing:
            return
        if len(project.places) > _MAX_PLACES:
            project.places.clear()
            missing = list(names)
        ids = {"$ifNull": [f"$canvasData.{project.declared.list}.{project.declared.id}", []]}
        found = await self._database.projects.aggregate(
            [
                {"$match": {**project.mine, "canvasRevision": project.revision}},
                {
                    "$project": {
                        "at": {
                            "$cond": [
                                {"$isArray": [ids]},
                                {"$map": {"input": {"$literal": missing}, "in": {"$indexOfArray": [ids, "$$this"]}}},
                                [],
                            ]
                        }
                    }
                },
            ]
        )
        if found:
            known = zip(missing, found[0]["at"], strict=False)
            project.places |= {name: place for name, place in known if place >= 0}

    async def _look(self, project: Edited, clients: Sequence[str]) -> None:
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
                        "size": {"$bsonSize": {"v": {"$ifNull": ["$canvasData", {}]}}},
                        "base": {"$cond": [storage.APART, "$canvasBase", None]},
                        "tail": storage.TAIL,
                        "since": {"$literal": []} if project.ids is None else _since(project.ids_at),
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
            project.ids = None
            project.places.clear()
            for waiting in project.pending.values():
                waiting.patch = None
        revision = now.get("revision")
        if revision != project.revision:
            project.marks.clear()
            project.earlier.clear()
            project.places.clear()
        project.known, project.room = True, int(now["room"])
        project.revision = None if revision is None else int(revision)
        project.last = max(project.last, project.revision or 0)
        project.marks |= {client: _mark(marks.get(client)) for client in clients}
        project.crowded = now["clients"] >= _KEPT_CLIENTS
        project.records = now["records"]
        canvas, named = now["kinds"]
        project.usable = canvas in ("missing", "null") or (canvas == "object" and named in ("missing", "null", "array"))
        project.size, project.tail = now["size"], now["tail"]
        project.base = bases.base_of(now["base"])
        if project.base is not None:
            project.usable = project.has_records
        if project.base is None:
            project.ids = None
        elif (
            project.ids is not None
            and project.base.revision <= project.ids_at
            and None not in (since := [bases.changed(each) for each in now["since"]])
        ):
            self._count(project, project.revision or 0, since)
        else:
            project.ids = None
            await self._index(project)
            await self._look(project, clients)

    async def _find_earlier(self, project: Edited, clients: Iterable[str]) -> None:
        """Read the outcomes of clients' patches in the log."""
        log = {"$objectToArray": {"$cond": [storage.object_at("canvasLog"), "$canvasLog", {}]}}
        by_them = {"$or": [{"$gt": [f"$$this.v.b.{client}", None]} for client in clients]}
        outcomes = {name: f"$$this.v.{name}" for name in ("r", "b", "x")}
        found = await self._database.projects.aggregate(
            [
                {"$match": project.mine},
                {
                    "$project": {
                        "log": {"$map": {"input": {"$filter": {"input": log, "cond": by_them}}, "in": outcomes}}
                    }
                },
            ]
        )
        project.earlier.clear()
        for entry in filter(None, map(_logged, found[0]["log"] if found else ())):
            for client, seq in entry.b.items():
                kept = None if entry.x is None else Outcome(entry.r, entry.x.get(client, []))
                project.earlier[client, seq] = kept

    async def _index(self, project: Edited) -> None:
        """Read the ids of a large canvas's records."""
        found = await bases.read(self._database, project.mine)
        if found is None:
            raise NotFound("No such project")
        project.has_records = records.lists(found.canvas_data, project.declared)
        project.ids = await asyncio.to_thread(records.ids_of, found.canvas_data, project.declared)
        self._count(project, found.canvas_revision or 0, [])


def _since(revision: int) -> dict[str, Any]:
    """An expression: the patches after a revision."""
    tail = {"$cond": [{"$isArray": ["$canvasTail"]}, "$canvasTail", []]}
    return {"$filter": {"input": tail, "cond": {"$gt": ["$$this.r", revision]}}}


def _unusable(project: Edited) -> Invalid:
    return Invalid.field(
        "patch", f"needs a canvas that is an object, with the list {project.declared.list!r} in it, or none"
    )


def _mark(stored: Any) -> Mark | None:
    try:
        return None if stored is None else msgspec.convert(stored, Mark, strict=False)
    except msgspec.ValidationError:  # written by another application
        return None


class _Logged(msgspec.Struct, frozen=True):
    """An entry of the log: its revision, the senders' numbers, and the ids that they set in vain,
    or None if these are too many for the log."""

    r: int
    b: dict[str, int]
    x: dict[str, list[str]] | None = {}


def _logged(stored: Any) -> _Logged | None:
    try:
        return msgspec.convert(stored, _Logged, strict=False)
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


def _most_ids(project: Edited) -> int:
    """Of a change of many records: the server compares each with each record of the canvas."""
    return max(BY_PATH, min(records.MAX_RECORDS, _MAX_COMPARED // max(1, project.records)))


def _batch(project: Edited) -> list[Waiting]:
    """The next patches to save together: in their order, and one of each client."""
    waiting, most = project.waiting, _most_ids(project)
    batch = [waiting.popleft()]
    clients, size, ids = {batch[0].client}, batch[0].size, batch[0].ids
    while waiting and len(batch) < MAX_CLIENTS:
        following = waiting[0]
        size, ids = size + following.size, ids + following.ids
        if size > _MAX_BATCH or ids > most or following.client in clients:
            break
        clients.add(following.client)
        batch.append(waiting.popleft())
    return batch


def _is_doubtful(project: Edited, waiting: Waiting) -> bool:
    """Whether the log may have the outcome of a patch that is not its client's latest known one."""
    mark = project.marks.get(waiting.client)
    return project.crowded if mark is None else mark.s > waiting.seq


def _due(project: Edited, batch: Sequence[Waiting]) -> list[Waiting]:
    """The patches that are not applied yet, parsed; the others are answered."""
    due = []
    for waiting in batch:
        mark = project.marks.get(waiting.client)
        if mark is not None and mark.s == waiting.seq:
            outcome: Outcome | None = Outcome(mark.r, mark.x)
        else:
            outcome = project.earlier.get((waiting.client, waiting.seq))
        if mark is not None:
            latest = mark.s
        else:
            latest = max((seq for client, seq in project.earlier if client == waiting.client), default=0)
        if outcome is not None:
            project.pending.pop((waiting.client, waiting.seq), None)
            if not waiting.answer.done():
                waiting.answer.set_result(outcome)
        elif latest >= waiting.seq:
            passed = (
                f"Patch {latest} of this client was saved, and the log has no patch {waiting.seq}, which may have been "
                "applied before it: read the canvas, and send the missing changes with a higher seq"
            )
            _fail(project, [waiting], SeqPassed(passed, fields={"seq": f"must be above {latest}"}))
        else:
            try:
                waiting.patch = waiting.patch or records.parse(waiting.given, project.declared)
            except Invalid as error:
                _fail(project, [waiting], error)
            else:
                due.append(waiting)
    return due


def _fail(project: Edited, batch: Sequence[Waiting], error: BaseException) -> None:
    for waiting in batch:
        project.pending.pop((waiting.client, waiting.seq), None)
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
            waiting.answer.exception()  # retrieved: the client may have left
