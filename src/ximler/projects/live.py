"""Changes of canvases as they happen: a bounded queue of revisions for each follower,
filled by the process's change stream.

A follower receives each revision after the one it has, in order and once: the patches in the project's log,
then those of the stream. Patches that are too large for the log are taken from the memory of the process that
saved them. If a patch is missing, because it left the log, another process saved it and it is large, or the
follower is too slow, the follower receives an event without a patch. It then reads the canvas again, and
continues with later events.

Followers end when the project is deleted, and members' also when their share is revoked, or the owner's
account is closed or locked. The caller checks the session or key. Nothing of a follower remains when its
`with` block ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import structlog
from bson import ObjectId

from ximler.accounts import account_status
from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.core.in_flight import InFlight
from ximler.core.streams import Inbox, Streams
from ximler.database import Database
from ximler.database.changes import Change, Feed
from ximler.projects import access
from ximler.projects.patches import LOGGED, Recent
from ximler.schema.document import Identified, Mixed
from ximler.schema.project import PROJECTS
from ximler.schema.project_share import PROJECT_SHARES

__all__ = ["Event", "Follower", "Live"]

_log = structlog.get_logger("ximler.projects")
_MAX_EVENTS = 256
_MAX_BYTES = 1_000_000


class Event(msgspec.Struct, frozen=True):
    """A revision's patch as JSON; None: the canvas is to be read again, and has at least this revision.

    A patch of records (`records`), or one by position: `{"revision", "patch" or "merge"}`.
    """

    revision: int
    patch: bytes | None = None
    kind: Literal["records", "patch", "merge"] = "records"


class _Logged(Identified, kw_only=True):
    canvas_revision: int = 0
    canvas_log: Mixed = None


class _Entry(msgspec.Struct, frozen=True):
    """An entry of the log: a patch of records in `q`, or its digest in `h`, with its senders' numbers in `b`;
    or a patch by position. Neither repeats the revision. An entry of an earlier release,
    with `p`, has no patch that can be sent."""

    r: int
    b: dict[str, int] = {}
    q: bytes | None = None
    h: bytes = b""
    j: bytes | None = None
    m: bytes | None = None

    def event(self, recent: Recent) -> Event:
        if self.j is not None:
            return Event(self.r, b'{"revision":%d,"patch":%b}' % (self.r, self.j), "patch")
        if self.m is not None:
            return Event(self.r, b'{"revision":%d,"merge":%b}' % (self.r, self.m), "merge")
        patch = self.q[:-1] if self.q is not None else recent.find(self.h)
        if patch is None:
            return Event(self.r)
        by = msgspec.json.encode(list(self.b.items()))
        return Event(self.r, b'{"revision":%d,"by":%b%b' % (self.r, by, b"," + patch[1:] if len(patch) > 2 else b"}"))


class Follower(Inbox[Event]):
    """Of one project. `at` is the last revision that it has."""

    def __init__(self, project_id: ObjectId, user_id: ObjectId, in_flight: InFlight) -> None:
        super().__init__()
        self._in_flight = in_flight
        self.project_id, self.user_id = project_id, user_id
        self.share_id: bytes | None = None  # of a member
        self.owner_id: ObjectId | None = None  # of a member's project
        self.revoked: set[bytes] = set()  # before the share was known
        self._at: int | None = None  # None: the log is not read yet
        self._bytes = self._sent = 0  # bytes of patches: queued, and taken by the last `events`

    async def events(self, timeout_s: float) -> list[Event]:
        """The patches of the last call have been sent."""
        self._in_flight.give(self._sent, known=True)
        self._sent = 0
        return await super().events(timeout_s)

    def forget(self) -> None:
        """When it ends."""
        self._in_flight.give(self._bytes + self._sent, known=True)
        self._bytes = self._sent = 0

    def _empty(self) -> None:
        super()._empty()
        self._sent += self._bytes
        self._bytes = 0

    def begin(self, since: int | None, now: _Logged, recent: Recent) -> None:
        """Continue after revision `since`; without it, after the current one."""
        early = list(self._events)
        self._empty()
        revision = now.canvas_revision
        self._at = revision if since is None else since
        if self._at > revision:  # of a canvas that another application has replaced
            self._reload(revision)
        for event in [*_logged(now, self._at, recent), Event(revision), *early]:
            self.add(event)
        self._wake.set()

    def add(self, event: Event) -> None:
        """Of a change that is committed, after those before it."""
        if self._at is None:
            self._events.append(event)
            if len(self._events) > _MAX_EVENTS:
                self._events.popleft()  # `begin` finds the gap
            return
        if event.revision <= self._at:
            return
        size = len(event.patch or b"")
        full = len(self._events) >= _MAX_EVENTS or self._bytes + size > _MAX_BYTES
        if event.patch is None or event.revision != self._at + 1 or full or not self._in_flight.take(size, known=True):
            self._reload(event.revision)
            return
        self._at = event.revision
        self._bytes += size
        self._events.append(event)
        self._wake.set()

    def lose(self, revision: int | None = None) -> None:
        """After a gap in the stream; or at `revision`, where counting has begun again."""
        if self._at is not None:
            self._reload(self._at if revision is None else revision)

    def _reload(self, revision: int) -> None:
        self._in_flight.give(self._bytes, known=True)
        self._bytes = 0
        self._empty()
        self._at = revision
        self._events.append(Event(revision))
        self._wake.set()


class Live:
    """One per process, on its feed, with the large patches that the process saved."""

    def __init__(
        self,
        database: Database,
        feed: Feed,
        recent: Recent | None = None,
        streams: Streams | None = None,
        in_flight: InFlight | None = None,
    ) -> None:
        self._in_flight = in_flight or InFlight(2**63)
        self._database = database
        self._streams = Streams() if streams is None else streams
        self._recent = recent or Recent()
        self._followers: dict[ObjectId, set[Follower]] = {}
        feed.subscribe([PROJECTS.name], self._heard)
        feed.subscribe([PROJECT_SHARES.name], self._share_changed)
        feed.subscribe([watch.collection for watch in account_status.WATCHES], self._account_changed)
        feed.on_gap(self._gap)

    @property
    def followers(self) -> int:
        return sum(map(len, self._followers.values()))

    @contextmanager
    def follow(self, actor: Actor, project_id: ObjectId) -> Iterator[Follower]:
        """A follower, which receives nothing before `begin`. Raises as `Streams.admit`."""
        with self._streams.open(actor, Follower(project_id, actor.require_user(), self._in_flight)) as follower:
            self._followers.setdefault(project_id, set()).add(follower)
            try:
                yield follower
            finally:
                follower.forget()
                of_project = self._followers[project_id]
                of_project.discard(follower)
                if not of_project:
                    del self._followers[project_id]

    async def begin(self, follower: Follower, since: int | None) -> None:
        """Let it receive the revisions after `since`. One command, three for a member. Raises NotFound."""
        where = {"_id": follower.project_id, "userId": follower.user_id}
        now = await self._database.projects.find_one(where, into=_Logged)
        if now is None and (share := await access.find(self._database, follower.user_id, follower.project_id)):
            follower.share_id, follower.owner_id = share.id, share.user_id
            if share.id not in follower.revoked:
                where["userId"] = share.user_id
                now = await self._database.projects.find_one(where, into=_Logged)
        if now is None:
            raise NotFound("No such project")
        follower.begin(since, now, self._recent)

    def _heard(self, change: Change) -> None:
        followers = self._followers.get(change.id)
        if not followers:
            return
        if change.operation == "delete" or change.updated.get("deletedAt") or "userId" in change.updated:
            for follower in followers:
                follower.end()
        elif change.operation == "replace":
            stored = (change.document or {}).get("canvasRevision")
            for follower in followers:
                follower.lose(stored if isinstance(stored, int) else 0)
        elif isinstance(revision := change.updated.get("canvasRevision"), int):
            place, log = str(revision % LOGGED), change.updated.get("canvasLog")
            stored = change.updated.get(f"canvasLog.{place}", log.get(place) if isinstance(log, dict) else None)
            entry = _entry(_parts(change.updated, f"canvasLog.{place}.") if stored is None else stored)
            event = entry.event(self._recent) if entry is not None and entry.r == revision else Event(revision)
            for follower in followers:
                follower.add(event)

    def _share_changed(self, change: Change) -> None:
        if change.operation != "delete":
            return
        for follower in self._followers.get(access.project_of(change.id), ()):
            follower.revoked.add(change.id)
            if follower.share_id == change.id:
                follower.end()

    def _account_changed(self, change: Change) -> None:
        now = {**(change.document or {}), **change.updated}
        if now.get("lockedAt") or now.get("deletedAt"):
            self._each(lambda follower: follower.end() if follower.owner_id == change.id else None)

    def _gap(self) -> None:
        self._each(Follower.lose)
        self._each(lambda follower: follower.end() if follower.share_id else None)  # a share may be revoked since

    def _each(self, act: Any) -> None:
        for followers in self._followers.values():
            for follower in followers:
                act(follower)


def _logged(now: _Logged, since: int, recent: Recent) -> Iterator[Event]:
    """The logged revisions after `since`."""
    log = now.canvas_log
    kept = [_entry(each) for each in log.values()] if isinstance(log, dict) else []
    if (log is not None and not isinstance(log, dict)) or None in kept:
        _log.warning("log of patches cannot be read", project=str(now.id))  # another application has written it
    for entry in sorted((each for each in kept if each is not None), key=lambda each: each.r):
        if since < entry.r <= now.canvas_revision:
            yield entry.event(recent)


def _parts(updated: dict[str, Any], prefix: str) -> dict[str, Any]:
    """An entry from its changed fields, named one by one: a pipeline left others, of `x`, unchanged."""
    entry: dict[str, Any] = {}
    for path, value in updated.items():
        if path.startswith(prefix):
            name, _, client = path.removeprefix(prefix).partition(".")
            if client:
                entry.setdefault(name, {})[client] = value
            else:
                entry[name] = value
    return entry


def _entry(stored: Any) -> _Entry | None:
    try:
        return msgspec.convert(stored, _Entry)
    except msgspec.ValidationError:
        return None
