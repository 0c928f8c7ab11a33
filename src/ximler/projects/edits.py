"""A project that is edited, as a process knows it, and the updates of it that save patches of records.

An update depends on the patches and this state only, never on the canvas. `patches` decides which is sent.
"""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import bson
import msgspec
from bson import ObjectId

from ximler.projects import bases, records
from ximler.projects.bases import Base, Fresh
from ximler.projects.projects import next_revision
from ximler.projects.records import Composed, RecordPatch

__all__ = [
    "BY_PATH",
    "BY_PLACE",
    "LOGGED",
    "MAX_LOGGED",
    "MAX_TAIL",
    "POSITIONAL",
    "Change",
    "Edited",
    "Mark",
    "Outcome",
    "Recent",
    "Waiting",
]

LOGGED = 64  # revisions
MAX_LOGGED = 4096  # bytes of a patch in the log
POSITIONAL = {"patch": "j", "merge": "m"}  # fields of such patches in the log; one of records is in `q`
MAX_RECENT = 16_000_000  # bytes of larger patches in the memory of a process
_MAX_REJECTED = 100  # ids in an answer
BY_PATH = 8  # records: of more, the pipeline is faster
BY_PLACE = 100  # records whose places in the list are known
MAX_TAIL = 2_000_000  # bytes of them that a project has
_OBJECT_ID = 7  # BSON's type number, shorter than its name
_MARGIN = 128  # bytes that a change may add besides its values: the list's name, its place in the log


class Outcome(msgspec.Struct, frozen=True):
    """The revision that has the patch, and the ids that it set in vain,
    because no record has them: the first 100."""

    revision: int
    rejected: list[str] = []


class Mark(msgspec.Struct, frozen=True):
    """The latest patch of a client: its number, its revision, and the ids that it set in vain."""

    s: int
    r: int
    x: list[str] = []


class Waiting:
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


class Edited:
    """A project that is edited, as this process knows it. The marks are those of `revision`."""

    def __init__(self, project_id: ObjectId, user_id: ObjectId) -> None:
        self.id, self.user_id = project_id, user_id
        self.mine = {"_id": project_id, "userId": user_id}
        self.waiting: deque[Waiting] = deque()
        self.pending: dict[tuple[str, int], Waiting] = {}
        self.saving: asyncio.Task[None] | None = None
        self.known = False  # False: look before the next change
        self.revision: int | None = None  # None: another application has written the whole project
        self.last = 0  # the highest revision that this process has seen
        self.room = 0
        self.records = 0  # at least
        self.usable = True
        self.declaration: Any = None
        self.declared = records.DEFAULT
        self.marks: dict[str, Mark | None] = {}
        self.crowded = False  # whether marks of clients that are still in the log may have been removed
        self.earlier: dict[tuple[str, int], Outcome | None] = {}  # outcomes in the log of the clients last looked up
        self.base: Base | None = None
        self.size = 0  # bytes of the canvas, at least
        self.tail = 0  # bytes of the patches since the base
        self.has_records = False  # a large canvas has the list of records, or has room for one
        self.ids: set[str] | None = None  # of a large canvas's records, at revision `ids_at`
        self.ids_at = 0
        self.places: dict[str, int] = {}  # of records in the list of a small canvas, at `revision`
        self.compacting: ObjectId | None = None  # the base for which a job is enqueued
        self.saved_at: float | None = None  # None: measured since


class Recent:
    """The latest patches of this process that are too large for the log,
    by the digest that the log has in their place."""

    def __init__(self) -> None:
        self._patches: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, digest: bytes, patch: bytes) -> None:
        if digest in self._patches or len(patch) > MAX_RECENT // 8:
            return
        self._patches[digest] = patch
        self._bytes += len(patch)
        while self._bytes > MAX_RECENT:
            self._bytes -= len(self._patches.popitem(last=False)[1])

    def find(self, digest: bytes) -> bytes | None:
        return self._patches.get(digest)


class Change:
    """The update of a batch, on the state that the process knows."""

    def __init__(
        self,
        project: Edited,
        batch: Sequence[Waiting],
        composed: Composed,
        now: datetime,
        ids: set[str] | None,
        recent: Recent,
    ) -> None:
        """With the `ids` of records, what is set in vain is known before."""
        self._project = project
        self._composed = composed
        self._now = now
        self.revision = next_revision(project.revision, now, above=project.last)
        rejected = composed.rejected
        if ids is not None:
            parts = zip(composed.rejected, composed.depends, strict=True)
            rejected = [[*gone, *(name for name in depends if name not in ids)] for gone, depends in parts]
        self.marks = {
            waiting.client: Mark(waiting.seq, self.revision, gone[:_MAX_REJECTED])
            for waiting, gone in zip(batch, rejected, strict=True)
        }
        self._depends = dict(zip(self.marks, composed.depends, strict=True))
        event = {"put": list(composed.put.values()), "set": composed.set, "remove": composed.remove}
        senders = {client: mark.s for client, mark in self.marks.items()}
        self._logged: dict[str, Any] = {"r": self.revision, "b": senders}
        self.patch = msgspec.json.encode({name: value for name, value in event.items() if value})
        # Must differ from the previous value: change streams omit fields that a pipeline leaves unchanged.
        turn = bytes([self.revision // LOGGED % 256])
        if len(self.patch) <= MAX_LOGGED:
            self._logged["q"] = self.patch + turn
        else:
            self._logged["h"] = digest = hashlib.blake2b(self.patch, digest_size=12, salt=turn).digest()
            recent.keep(digest, self.patch)
        if project.base is None:
            sizes = len(bson.encode({"p": list(composed.put.values()), "s": list(composed.set.values())}))
            self.grows = sizes + 16 * composed.ids + len(self._logged.get("q", b"")) + _MARGIN
        else:
            self.grows = len(self.patch) + len(self._logged.get("q", b"")) + 2 * _MARGIN
        if gone := {client: mark.x for client, mark in self.marks.items() if mark.x}:
            self._logged["x"] = gone if len(bson.encode(gone)) <= MAX_LOGGED else None
        self.grows += len(bson.encode(senders))
        self.grows += sum(len(client) + 40 for client in self.marks if project.marks.get(client) is None)
        vain = [[*mark.x, *depends] for mark, depends in zip(self.marks.values(), composed.depends, strict=True)]
        size = sum(len(name.encode()) + 8 for names in vain for name in names[:_MAX_REJECTED])
        self.grows += size + min(size + sum(len(client) + 8 for client in self.marks), MAX_LOGGED) if size else 0

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
        if composed.ids > BY_PLACE or sum(map(bool, (composed.put, composed.set, composed.remove))) != 1:
            return None
        placed = self.places_needed() and self._project.places.keys() >= composed.set.keys()
        if composed.ids > BY_PATH and not placed:
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
        if placed:
            where = {}
            for name, properties in composed.set.items():
                at = f"{place}.{self._project.places[name]}"
                where[f"{at}.{declared.id}"] = name
                update["$set"] |= {f"{at}.{key}": value for key, value in properties.items()}
            return where, update, None
        filters = []
        for number, (name, properties) in enumerate(composed.set.items()):
            update["$set"] |= {f"{place}.$[r{number}].{key}": value for key, value in properties.items()}
            filters.append({f"r{number}.{declared.id}": name})
        return {ids: {"$all": list(composed.set)}}, update, filters

    def places_needed(self) -> bool:
        """Whether the change sets properties of several records,
        which is fastest by their places in the list."""
        composed = self._composed
        return not composed.put and not composed.remove and 1 < len(composed.set) <= BY_PLACE

    def is_whole(self) -> bool:
        """Whether the canvas is to be stored anew:
        it has or becomes a base, and the patch is too large to be appended."""
        project = self._project
        if project.base is not None:
            return project.base.text or project.tail + len(self.patch) > MAX_TAIL
        return project.size + self.grows > bases.LIMIT and bool(self._composed.put or self._composed.set)

    def appended(self) -> tuple[dict[str, Any], dict[str, Any], None]:
        """Filter and update of a large canvas."""
        update = self._bookkeeping()
        update["$push"] = {"canvasTail": bases.entry(self.revision, self.patch, self._project.declared)}
        return {"canvasData": None, "canvasBase.id": {"$type": _OBJECT_ID}}, update, None

    def whole(self, data: Any, new: Fresh | None) -> dict[str, Any]:
        """Update that stores the canvas, or names its new base."""
        update = self._bookkeeping()
        update["$unset"] = dict.fromkeys(["canvasTail"] if new else ["canvasBase", "canvasTail"], "")
        update["$set"] |= {"canvasBase": new.at(self.revision), "canvasData": None} if new else {"canvasData": data}
        return update

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
        made = [{"$set": literal}]
        if any(self._depends.values()):
            gone = {client: {"$ifNull": [f"$canvasClients.{client}.x", []]} for client in self.marks}
            kept = {"$cond": [{"$lte": [{"$bsonSize": gone}, MAX_LOGGED]}, gone, None]}
            made.append({"$set": {f"canvasLog.{self.revision % LOGGED}.x": kept}})
        usable = [
            {"canvasData": None},
            {
                "canvasData": {"$type": "object", "$not": {"$type": "array"}},
                "$or": [{place: {"$type": "array"}}, {place: None}],
            },
        ]
        return {"$or": usable}, made

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
