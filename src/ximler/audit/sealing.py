"""The sealer: lists new entries in seals, in commit order.

It reads the change stream of `auditlogs` from the end of the last seal. Neither a wrong clock nor a long
transaction hides an entry, and an entry that is removed before it is sealed still leaves its trace. It scans
the collection for the first seal, and after the stream's history was lost.

Any number of sealers may run: `seals.append` lets one of them win.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import bson
import msgspec
import structlog
from bson import ObjectId, Timestamp
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from prometheus_client import Counter
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from ximler.audit import fingerprint, records, seals
from ximler.audit.actions import Action
from ximler.audit.heads import KeptHead
from ximler.audit.keys import SealKeys
from ximler.audit.seals import BACKDATED, FORGED, FOUND, OTHERS, Head, Member, head_of
from ximler.core.actor import SYSTEM
from ximler.core.clock import EPOCH, from_ms
from ximler.core.errors import Conflict, Unavailable
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.batches import RawBatches
from ximler.database.codec import apart, object_id_in
from ximler.database.failures import translated
from ximler.runtime import Part, background
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.seal import SEALS, Seal, SealHead

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession

__all__ = ["MAX_DELAY", "ChainBroken", "Sealer"]

_log = structlog.get_logger("ximler.audit")

EVERY_S = 20.0
MAX_DELAY = timedelta(
    seconds=120
)  # a transaction lives 60 s at most, a clock may be 5 s behind, a seal follows after 20 s
_HEARTBEAT = timedelta(hours=1)
_CAUGHT_UP_S = 5.0  # timeout for the stream to reach the cluster time at the start of a round
_AWAIT_MS = 250
_MANY = 1_000
_LOST_HISTORY = frozenset({136, 222, 237, 260, 280, 286})
_FIRST_LOOK = timedelta(minutes=10)
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)

SEALED = Counter("ximler_audit_sealed_total", "Audit entries listed in seals by this process.")

# Only the fields that a seal needs, because an event of more than 16 MB would stop the stream.
_PIPELINE: list[dict[str, Any]] = [
    {"$match": {"operationType": "insert"}},
    {
        "$project": {
            "_id": 1,
            "i": "$documentKey._id",
            "t": "$clusterTime",
            "a": {"$type": "$fullDocument.metadata._audit"},
            "h": "$fullDocument.metadata._audit.hash",
            "m": "$fullDocument.metadata._audit.mac",
            "c": "$fullDocument.createdAt",
        }
    },
]
_LOOKED = {
    "_id": 1,
    "i": "$_id",
    "a": {"$type": "$metadata._audit"},
    "h": "$metadata._audit.hash",
    "m": "$metadata._audit.mac",
    "c": "$createdAt",
}
# Decoded lazily: 10,000 dicts at once take twice as long, because of garbage collection.
_UNREAD: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)


@background
def _sealer(*, database: Database, settings: Settings, seal_keys: SealKeys | None) -> Part | None:
    if seal_keys is None:
        return None
    kept = KeptHead(settings.data_path, database.name)
    sealer = Sealer(database, seal_keys, kept=kept, may_found=settings.mongodb_uri is None)
    return Part("audit.sealer", sealer.run, lease=True)


class _Batch(msgspec.Struct):
    members: list[Member]
    times: list[datetime]  # naive, of the entries
    position: bytes | None
    reached_at: datetime


class ChainBroken(Conflict):
    """The chain does not contain this machine's head, or a first chain would begin over older entries."""

    code = "AUDIT_CHAIN_BROKEN"


class Sealer:
    """`seal` lists the entries written since the last seal; `run` does so every 20 seconds.

    `kept` is the head kept outside the database. With `may_found`, the first chain may begin over older
    entries, for databases inside the data folder, beside the kept head.
    """

    def __init__(
        self, database: Database, keys: SealKeys, *, kept: KeptHead | None = None, may_found: bool = False
    ) -> None:
        self._database = database
        self._keys = keys
        self._kept = kept
        self._may_found = may_found
        # Position of the stream after a seal, if it had nothing to seal.
        self._read_on: tuple[int, bytes, datetime] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        unreachable = False
        while not await pause(stop, EVERY_S * random.uniform(0.75, 1.0)):  # noqa: S311 (jitter)
            try:
                if await self._is_due():
                    await self.seal()
                unreachable = False
            except Unavailable as error:
                if not unreachable:
                    _log.warning("sealing waits", reason=error.message)
                unreachable = True
            except ChainBroken as error:
                _log.error("the audit log is not sealed", reason=error.message)

    async def seal(self, *, progress: Callable[[int], object] = lambda _: None, new_chain: bool = False) -> int:
        """Seal all committed entries; returns how many. `progress` receives the count so far.

        `new_chain` accepts that the chain does not follow the kept head, or begins over older entries, and
        audits that. Raises NoSealKey, ChainBroken, DatabaseUnavailable. Entries sealed by a concurrent sealer
        are not counted.
        """
        self._keys.sign(b"")  # fails early without a key
        try:
            await self._require_chain(new_chain)
            return await self._seal(progress)
        except PyMongoError as error:
            final = translated(error, AUDIT_LOGS.name)
            if final is error:
                raise
            raise final from error

    async def _require_chain(self, new_chain: bool) -> None:
        """Raises ChainBroken if the chain does not contain the kept head, or would begin over entries older
        than an hour.
        """
        end = await seals.last(self._database)
        head = self._kept.read() if self._kept else None
        if head is not None:
            if await self._contains(end, head):
                return
            problem = f"does not contain seal {head.number}, which was sealed from here: seals or entries were removed"
        elif end is not None or not await self._has_older_entries():
            return
        else:
            problem = "does not exist, and there are older entries: their seals were removed, or never made"
            new_chain = new_chain or self._may_found
        if not new_chain:
            raise ChainBroken(
                f"The chain of seals {problem}. 'ximler audit verify' checks the rest; "
                "'ximler audit seal --new-chain' continues from here"
            )
        await records.write(
            self._database, SYSTEM, Action.CHAIN_FOUNDED, resource=SEALS.name, lost=head and head.number
        )
        if self._kept and head is not None:
            following = Head(0, "", head.sealed_at) if end is None else head_of(end)
            self._kept.keep(following, anew=True)

    async def _contains(self, end: SealHead | None, head: Head) -> bool:
        if head.number == 0 or (end is not None and head_of(end).hash == head.hash):
            return True
        if end is None or end.id <= head.number:
            return False
        found = await self._database[SEALS].find_one({"_id": head.number}, into=SealHead)
        if found is not None:
            return head_of(found).hash == head.hash
        pruned = await seals.tombstone(self._database)
        return pruned is not None and seals.genuine(pruned, self._keys) and head.number <= (pruned.pruned_through or 0)

    async def _has_older_entries(self) -> bool:
        before = self._database.clock.now() - seals.FOUNDED_WITHIN
        logs = self._database.raw[AUDIT_LOGS.name]
        return await logs.find_one({"createdAt": {"$lt": before}}, {"_id": 1}) is not None

    async def _is_due(self) -> bool:
        """Whether no other sealer has sealed recently."""
        end = await seals.last(self._database)
        return end is None or end.sealed_at < self._database.clock.now() - timedelta(seconds=EVERY_S / 2)

    async def _seal(self, progress: Callable[[int], object]) -> int:
        count, look = 0, False
        while True:
            end = await seals.last(self._database)
            batches = self._streamed(end) if end and end.position and not look else self._looked_through(end)
            try:
                async with aclosing(batches):
                    async for batch in batches:
                        if not batch.members and not self._heartbeat_due(end):
                            if end is not None and batch.position is not None:
                                self._read_on = end.id, batch.position, batch.reached_at
                            continue
                        seal = await self._append(end, batch)
                        if seal is None:
                            break
                        end, head = seal, head_of(seal)
                        _log.info("audit log sealed", seal=head.number, hash=head.hash, entries=seal.count)
                        if self._kept:
                            self._kept.keep(head)
                        count += seal.count
                        SEALED.inc(seal.count)
                        progress(count)
                    else:
                        return count
                look = False  # another sealer was faster: continue from its seal
            except OperationFailure as error:
                if error.code not in _LOST_HISTORY or look:
                    raise
                _log.warning(
                    "the change stream's history is lost", code=error.code, reached=str(end and end.reached_at)
                )
                look = True

    def _heartbeat_due(self, end: SealHead | None) -> bool:
        """An empty seal shows that the sealer is alive, and bounds the age of the stream position in the last
        seal.
        """
        return end is None or end.sealed_at < self._database.clock.now() - _HEARTBEAT

    async def _append(self, end: SealHead | None, batch: _Batch) -> Seal | None:
        return await seals.append(
            self._database,
            self._keys,
            end,
            batch.members,
            first_at=_aware(min(batch.times, default=None)),
            last_at=_aware(max(batch.times, default=None)),
            reached_at=batch.reached_at,
            position=batch.position,
        )

    # By the change stream

    async def _streamed(self, end: SealHead) -> AsyncGenerator[_Batch, None]:
        """Events committed between the seal and now, in batches of a seal's size."""
        position, reached_at = end.position, end.reached_at
        if self._read_on is not None and self._read_on[0] == end.id:
            _, position, reached_at = self._read_on
        assert position is not None  # noqa: S101 (checked by the caller)
        async with self._database.client.start_session() as session:
            now = await self._now(session)
            deadline = asyncio.get_running_loop().time() + _CAUGHT_UP_S
            async with aclosing(self._events(session, {"resumeAfter": bson.decode(position)})) as received:
                async for events, token in received:
                    moment = _time_of(token)
                    reached_at = reached_at if moment is None else _at(moment)
                    yield await self._batch([bytes(event.raw) for event in events], token, reached_at)
                    late = asyncio.get_running_loop().time() > deadline
                    if (not events and (moment is None or late)) or (moment is not None and moment >= now):
                        return

    async def _events(
        self, session: "AsyncClientSession", start: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[list[RawBSONDocument], Mapping[str, Any]], None]:
        """Batches of events, each with its resume token.

        The driver's `watch` returns events one by one, which halves the sealer's throughput (measured).
        """
        raw = self._database.raw
        answer: Mapping[str, Any] = await raw.command(
            {
                "aggregate": AUDIT_LOGS.name,
                "pipeline": [{"$changeStream": dict(start)}, *_PIPELINE],
                "cursor": {"batchSize": seals.MAX_MEMBERS},
            },
            codec_options=_UNREAD,
            session=session,
        )
        cursor = answer["cursor"]

        async def more() -> Mapping[str, Any]:
            asked = {"getMore": cursor["id"], "collection": AUDIT_LOGS.name, "batchSize": seals.MAX_MEMBERS}
            return await raw.command({**asked, "maxTimeMS": wait_ms}, codec_options=_UNREAD, session=session)

        wait_ms = 1
        try:
            batch, token = cursor["firstBatch"], cursor["postBatchResumeToken"]
            while True:
                # Waits only for a server without new events, increasingly long.
                wait_ms = 1 if batch else min(2 * wait_ms, _AWAIT_MS)
                following: asyncio.Task[Mapping[str, Any]] | None = None
                if len(batch) > _MANY and cursor["id"]:
                    following = asyncio.create_task(more())  # fetched while this batch is sealed
                try:
                    yield batch, token
                    if not cursor["id"]:  # the collection was dropped or renamed, which ends its stream
                        return
                finally:
                    if following is not None:
                        await following
                answer = await (following or more())
                cursor = answer["cursor"]
                batch, token = cursor["nextBatch"], cursor["postBatchResumeToken"]
        finally:
            if cursor["id"]:
                await raw.command({"killCursors": AUDIT_LOGS.name, "cursors": [cursor["id"]]}, session=session)

    async def _now(self, session: "AsyncClientSession") -> Timestamp:
        """The newest operation time of the server, which the stream has to reach."""
        answer = await self._database.client.admin.command("ping", session=session)
        found: Timestamp = answer.get("operationTime") or Timestamp(0, 0)
        return found

    # By scanning the collection

    async def _looked_through(self, end: SealHead | None) -> AsyncGenerator[_Batch, None]:
        """Unsealed entries that may have been written since the stream was last read (all entries, if it
        never was), then the stream.

        The stream position is taken before the first entry is read, and stored in the last seal, so an
        interrupted scan is repeated. Entries committed during the scan are listed again in a later seal,
        which is harmless.
        """
        base = None if end is None else await self._last_position()
        since = None if base is None else base.reached_at - _FIRST_LOOK
        known = set() if end is None else await self._sealed_since(since)
        async with self._database.client.start_session() as session:
            async with aclosing(self._events(session, {})) as events:
                _, token = await anext(events)
            moment = _time_of(token)
            now = self._database.clock.now() if moment is None else _at(moment)
            raw = self._database.raw[AUDIT_LOGS.name].with_options(
                codec_options=fingerprint.OPTIONS,
                read_concern=ReadConcern("majority"),  # entries that a failover rolls back must not be sealed
            )
            where = {} if since is None else {"createdAt": {"$gte": since}}
            found: Any = RawBatches(
                raw, where, _LOOKED, sort=[("createdAt", 1)], session=session, batch_size=seals.MAX_MEMBERS
            )
            seen: list[bytes] = []
            async for stream in found:
                for document in apart(stream):
                    if object_id_in(document) not in known:
                        seen.append(document)
                        if len(seen) == seals.MAX_MEMBERS:
                            yield await self._batch(seen, None, EPOCH if base is None else base.reached_at)
                            seen = []
            yield await self._batch(seen, token, now)

    async def _last_position(self) -> SealHead | None:
        """The last seal with a stream position."""
        where = {"position": {"$type": "binData"}}
        return await self._database[SEALS].find_one(where, into=SealHead, sort=[("_id", -1)])

    async def _sealed_since(self, since: datetime | None) -> set[bytes]:
        known: set[bytes] = set()
        async for seal in self._database[SEALS].stream({}, sort=[("_id", -1)], batch=20):
            if since is not None and seal.sealed_at < since:
                break
            known |= {member[0] for member in seals.members_of(seal)}
        return known

    async def _batch(
        self,
        seen: Sequence[bytes],
        token: Mapping[str, Any] | None,
        reached_at: datetime,
    ) -> _Batch:
        """The batch of rows from `_PIPELINE` or `_LOOKED`."""
        keys = self._database.entry_keys
        members: list[Member] = []
        times: list[datetime] = []
        unmarked: list[int] = []  # indexes in `members`
        for place, raw in enumerate(seen):
            if place % 128 == 0:
                await asyncio.sleep(0)  # lets the next batch be fetched
            found = bson.decode(raw, fingerprint.OPTIONS)
            oid, committed = found["i"], found.get("t")
            if type(oid) is not ObjectId:
                continue  # not an entry: `verify` reports it
            digest, mac, created = found.get("h"), found.get("m"), found.get("c")
            odd = 0 if committed else FOUND
            if found["a"] == "missing":
                odd |= OTHERS
                digest = _NO_HASH
                unmarked.append(len(members))
            elif type(digest) is not bytes or len(digest) != len(_NO_HASH):
                odd |= FORGED
                digest = _NO_HASH
            elif mac is None:
                odd |= OTHERS
            elif not fingerprint.authentic(digest, mac, keys):
                odd |= FORGED
            if type(created) is not datetime:
                odd |= BACKDATED
            else:
                times.append(created)
                if committed and abs((created - _EPOCH_NAIVE).total_seconds() - committed.time) > _MAX_DELAY_S:
                    odd |= BACKDATED
            members.append((oid.binary, digest, odd))
        hashes = await self._hashes([ObjectId(members[place][0]) for place in unmarked])
        for place in unmarked:
            oid, digest, odd = members[place]
            members[place] = oid, hashes.get(oid, digest), odd
        return _Batch(members, times, None if token is None else bson.encode(token), reached_at)

    async def _hashes(self, ids: Sequence[ObjectId]) -> dict[bytes, bytes]:
        """Hashes of entries without a fingerprint, as they are now."""
        if not ids:
            return {}
        logs = self._database.raw[AUDIT_LOGS.name].with_options(codec_options=fingerprint.OPTIONS)
        return {
            raw["_id"].binary: fingerprint.examine(raw).hash async for raw in logs.find({"_id": {"$in": list(ids)}})
        }


_NO_HASH = bytes(32)
_MAX_DELAY_S = MAX_DELAY.total_seconds()


def _time_of(token: Mapping[str, Any]) -> Timestamp | None:
    """The time at the start of a resume token (https://www.mongodb.com/docs/manual/changeStreams)."""
    data = token.get("_data")
    if not isinstance(data, str) or len(data) < 18 or data[:2] != "82":
        return None
    return Timestamp(int(data[2:10], 16), int(data[10:18], 16))


def _at(moment: Timestamp) -> datetime:
    return from_ms(moment.time * 1000)


def _aware(moment: datetime | None) -> datetime | None:
    return None if moment is None else EPOCH + (moment - _EPOCH_NAIVE)
