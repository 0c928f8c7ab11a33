"""Verification of the log against its seals: detects altered, missing and inserted entries.

First along the chain, seal by seal: numbers, hashes, signatures, and every listed entry. Then in reverse:
every stored entry must be listed, unless it is too recent to be sealed. Memory is bounded: large numbers of
ids are compared in several passes.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal

import bson
import msgspec
import structlog
from bson import ObjectId
from prometheus_client import Counter
from pymongo.errors import PyMongoError

from ximler.audit import fingerprint, seals
from ximler.audit.actions import Action
from ximler.audit.heads import KeptHead
from ximler.audit.keys import SealKeys
from ximler.audit.sealing import MAX_DELAY
from ximler.audit.seals import BACKDATED, FORGED, OTHERS, Head
from ximler.core import pacing
from ximler.core.clock import EPOCH
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.batches import RawBatches
from ximler.database.codec import apart, object_id_in
from ximler.database.failures import translated
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.seal import Seal, SealHead

__all__ = ["Problem", "Report", "verify", "verify_daily"]

_log = structlog.get_logger("ximler.audit")
VERIFIED = Counter("ximler_audit_verifications_total", "Daily verifications of the audit log.", ("outcome",))

MAX_PROBLEMS = 100
_AT_ONCE = 1_000
_PASS = 1_000_000  # ids in memory at once
_A_TURN = 16  # entries examined before it may yield
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)

What = Literal["altered", "missing", "inserted", "unsealed", "chain", "truncated"]


class Problem(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`entry` and `seal` locate the problem; `why` describes it for people."""

    what: What
    why: str
    entry: str | None = None
    seal: int | None = None


class Report(msgspec.Struct, rename="camel"):
    """The result of `verify`. The first problems are listed, in the log's order; `counts` has the totals by
    kind.
    """

    entries: int = 0  # checked against a seal
    seals: int = 0
    erased: int = 0  # of the entries, without the person
    others: int = 0  # written by other applications
    waiting: int = 0  # too recent to be sealed
    pruned: int = 0  # removed by age, before the remaining ones
    head: Head | None = None
    problems: list[Problem] = []
    counts: dict[str, int] = {}

    @property
    def sound(self) -> bool:
        return not self.counts

    def add(self, what: What, why: str, *, entry: Any = None, seal: int | None = None) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(what, why, None if entry is None else str(entry), seal))


async def verify(
    database: Database,
    keys: SealKeys,
    *,
    head: Head | None = None,
    others: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> Report:
    """Verify the whole log, read-only. `head`, an earlier end of the chain, also detects truncation since
    then.

    With `others`, entries of other applications, which have no mark of ours, are not problems. Raises
    DatabaseUnavailable.
    """
    try:
        while True:
            run = _Run(database, keys, others, progress)
            try:
                await run.chain(head)
            finally:
                await run.stop_reading()
            await run.unlisted()
            if not await run.overtaken():
                return run.report
    except PyMongoError as error:
        raise translated(error, AUDIT_LOGS.name) from error


@outbox.daily("audit.verify", hour=4)
async def verify_daily(*, database: Database, settings: Settings, seal_keys: SealKeys | None) -> None:
    """Verify the log, and raise the alarm if it is not sound: an error in the log, and a metric.

    Entries of other applications are accepted where the database is not Ximler's own.
    """
    if seal_keys is None:
        return  # `ximler doctor` reports that the log is not sealed
    kept = KeptHead(settings.data_path, database.name).read()
    others = settings.mongodb_uri is not None
    report = await verify(database, seal_keys, head=kept if kept and kept.number else None, others=others)
    VERIFIED.labels("sound" if report.sound else "unsound").inc()
    if not report.sound:
        _log.error(
            "the audit log does not verify",
            counts=report.counts,
            first=report.problems[0].why,
            remedy="ximler audit verify",
        )


# A listed entry: (seal's number, id, hash, flags)
_Listed = tuple[int, bytes, bytes, int]
_Stored = dict[bytes | None, bytes]  # stored entries by id


class _Run:
    def __init__(self, database: Database, keys: SealKeys, others: bool, progress: Callable[[int], object]) -> None:
        self.report = Report(problems=[], counts={})
        self._database = database
        self._keys = keys
        self._others = others
        self._progress = progress
        self._logs = database.raw[AUDIT_LOGS.name].with_options(codec_options=fingerprint.OPTIONS)
        self._pruned: SealHead | None = None
        self._end: SealHead | None = None
        self._through = 0  # the last pruned seal
        self._reached_at = EPOCH
        self._listed: set[bytes] = set()  # of the first pass
        self._passes = 1
        self._reading: tuple[list[_Listed], asyncio.Task[_Stored]] | None = None
        self._late = False  # the chain begins over older entries
        self._founded = False  # an audited command began it
        self._erasures: set[str] = set()  # people with a sealed erasure
        self._erased: dict[str, tuple[ObjectId, int]] = {}  # person → their first erased entry

    # Along the chain

    async def chain(self, head: Head | None) -> None:
        await self._start()
        pending: list[_Listed] = []
        previous = seals.START if self._pruned is None else self._pruned.pruned_hash
        number = self._through + 1
        met = head is None
        async for seal in seals.from_number(self._database, 1, to=self._through):
            await self._entries(self._members(seal) if seals.genuine(seal, self._keys) else [])  # of a running pruning
        async for seal in seals.from_number(self._database, number):
            if seal.id != number:
                missing = f"seal {number}" if seal.id == number + 1 else f"seals {number} to {seal.id - 1}"
                self.report.add("chain", f"{missing} missing", seal=number)
                previous = None
            digest = self._check(seal, previous)
            if head is not None and seal.id == head.number:
                met = True
                if digest.hex() != head.hash:
                    self.report.add("truncated", "the chain is not the one that the head was taken from", seal=seal.id)
            previous, number, self._end = digest, seal.id + 1, seal
            self.report.seals += 1
            if seal.id == 1 and seal.first_at is not None and seal.first_at < seal.sealed_at - seals.FOUNDED_WITHIN:
                self._late = True
            self._reached_at = max(self._reached_at, seal.reached_at)
            pending += self._members(seal)
            while len(pending) >= _AT_ONCE:
                await self._entries(pending[:_AT_ONCE])
                del pending[:_AT_ONCE]
        await self._entries(pending)
        await self._entries([])  # the last batch in flight
        if self._end is not None:
            self.report.head = Head(self._end.id, (previous or b"").hex(), self._end.sealed_at)
        if head is not None and not met:
            self._compare_with_pruned(head)

    async def _start(self) -> None:
        """Find the start of the chain: the first seal, or the one after the last tombstone's pruned seals."""
        found = await seals.tombstone(self._database)
        if found is None:
            return
        if seals.genuine(found, self._keys):
            self._pruned, self._through = found, found.pruned_through or 0
            self.report.pruned = found.pruned_count or 0
        # A forged tombstone is ignored: the chain is checked from its beginning and reports it.

    def _check(self, seal: Seal, previous: bytes | None) -> bytes:
        digest = seals.hash_of(seal)
        match self._keys.verifies(seal.key_id, digest, seal.signature):
            case None:
                self.report.add("chain", f"signed by an unknown key ({seal.key_id})", seal=seal.id)
            case False:
                self.report.add(
                    "chain", "its signature is invalid: the seal was altered, or made without our key", seal=seal.id
                )
        if previous is not None and seal.previous != previous:
            self.report.add("chain", "does not follow the seal before it", seal=seal.id)
        return digest

    def _members(self, seal: Seal) -> list[_Listed]:
        members = seals.members_of(seal)
        if len(members) != seal.count or seals.digest_of(seal.members) != seal.members_hash:
            self.report.add("chain", "its list of entries was altered", seal=seal.id)
        return [(seal.id, *member) for member in members]

    def _compare_with_pruned(self, head: Head) -> None:
        through = self._through
        if head.number > through:
            end = self._end.id if self._end else through
            why = f"the chain ends with seal {end}, but there was a seal {head.number}"
            self.report.add("truncated", why, seal=head.number)
        elif self._pruned and head.number == through and (self._pruned.pruned_hash or b"").hex() != head.hash:
            self.report.add("truncated", "the chain is not the one that the head was taken from", seal=head.number)

    async def overtaken(self) -> bool:
        """Whether a concurrent pruning made entries appear missing."""
        now = await seals.tombstone(self._database)
        return now is not None and seals.genuine(now, self._keys) and (now.pruned_through or 0) > self._through

    # Entries that seals list

    async def _entries(self, listed: list[_Listed]) -> None:
        """Fetch these entries while the previous batch is examined."""
        reading = asyncio.create_task(self._read(listed))
        before, self._reading = self._reading, (listed, reading)
        if before is not None:
            await self._examine(before[0], await before[1])

    async def stop_reading(self) -> None:
        """End the read that is in flight after an error."""
        if self._reading is not None:
            self._reading[1].cancel()
            with contextlib.suppress(asyncio.CancelledError, PyMongoError):
                await self._reading[1]

    async def _read(self, listed: list[_Listed]) -> _Stored:
        """The stored ones among them."""
        there: _Stored = {}
        if listed:
            where = {"_id": {"$in": [ObjectId(oid) for _, oid, _, _ in listed]}}
            found: Any = RawBatches(self._logs, where, batch_size=_AT_ONCE)
            async for stream in found:
                await pacing.yield_turn()
                there.update((object_id_in(raw), raw) for raw in apart(stream))
        return there

    async def _examine(self, listed: list[_Listed], there: _Stored) -> None:
        known: dict[bytes, bytes] = {}
        for place, (number, oid, digest, odd) in enumerate(listed):
            if place % _A_TURN == 0:
                await pacing.yield_turn()  # also lets the next batch be received
            self._remember(oid)
            if (stored := there.pop(oid, None)) is not None:
                known[oid] = digest
                self._examine_one(stored, number, digest, odd)
            elif number <= self._through:
                continue
            elif oid not in known:
                self.report.add("missing", "was sealed, and is not there", entry=ObjectId(oid), seal=number)
            elif known[oid] != digest:  # listed twice: removed and inserted again with other content
                self.report.add("altered", "differs from the sealed entry", entry=ObjectId(oid), seal=number)
        self.report.entries += sum(number > self._through for number, _, _, _ in listed)
        self._progress(self.report.entries)

    def _examine_one(self, stored: bytes, number: int, digest: bytes, odd: int) -> None:
        # Decoded one by one, because garbage collection would traverse thousands of dicts repeatedly.
        raw = bson.decode(stored, fingerprint.OPTIONS)
        metadata = raw.get("metadata")
        mark = metadata.get("_audit") if type(metadata) is dict else None
        found = fingerprint.examine(raw, stored)
        oid = raw["_id"]
        if problem := found.problem or (None if found.hash == digest else "differs from the sealed entry"):
            self.report.add("altered", problem, entry=oid, seal=number)
            return
        mac = mark.get("mac") if type(mark) is dict else None
        if odd & (OTHERS | FORGED) and not fingerprint.authentic(found.hash, mac, self._database.entry_keys):
            if odd & FORGED:
                self.report.add("inserted", "has a mark that is not ours", entry=oid, seal=number)
            else:
                self.report.others += 1
                if not self._others:
                    why = "has no mark of ours: another application or a person wrote it"
                    self.report.add("inserted", why, entry=oid, seal=number)
        elif raw.get("action") == Action.CHAIN_FOUNDED:
            self._founded = True
        elif raw.get("action") == Action.PERSON_ERASED:
            self._erasures.add(str(raw.get("resourceId")))
        if odd & BACKDATED and not (odd & OTHERS and self._others):
            self.report.add("inserted", "has a time that differs from its commit", entry=oid, seal=number)
        if found.erased:
            self.report.erased += 1
            for of in found.erased:
                actor = metadata.get("actorId") if type(metadata) is dict else None
                self._erased.setdefault(str(actor if of == "actor" else raw.get("userId")), (oid, number))

    def _remember(self, oid: bytes) -> None:
        """Remember ids for the second part; the first pass happens here, as far as memory allows."""
        if oid[-1] % self._passes == 0:
            self._listed.add(oid)
            if len(self._listed) > _PASS:
                self._passes *= 2
                self._listed = {one for one in self._listed if one[-1] % self._passes == 0}

    # Entries that no seal lists

    async def unlisted(self) -> None:
        """Check entries that no seal lists, and erased entries, which need a sealed erasure."""
        now = self._database.clock.now()
        for turn in range(self._passes):
            listed = self._listed if turn == 0 else await self._listed_in(turn)
            suspects = [oid async for oid in self._not_in(listed, turn)]
            if suspects:
                await self._judge(suspects, now)
        if self._late and not self._founded:
            why = "it begins over older entries: seals before it were removed, or never made"
            self.report.add("chain", why, seal=1)
        for person, (oid, number) in self._erased.items():
            if person not in self._erasures:
                why = "its personal data is gone, and no erasure of the person is recorded"
                self.report.add("altered", why, entry=oid, seal=number)

    async def _listed_in(self, turn: int) -> set[bytes]:
        listed: set[bytes] = set()
        async for seal in seals.from_number(self._database, 1):
            if seal.id <= self._through and not seals.genuine(seal, self._keys):
                continue
            listed.update(oid for oid, _, _ in seals.members_of(seal) if oid[-1] % self._passes == turn)
        return listed

    async def _not_in(self, listed: set[bytes], turn: int) -> AsyncGenerator[Any, None]:
        passes = self._passes
        found: Any = RawBatches(self._logs, {}, {"_id": 1}, hint="_id_", batch_size=50_000)
        async for stream in found:
            for raw in apart(stream):
                if (oid := object_id_in(raw)) is None:
                    if turn == 0:
                        yield bson.decode(raw, fingerprint.OPTIONS)["_id"]
                elif oid not in listed and oid[-1] % passes == turn:
                    yield ObjectId(oid)

    async def _judge(self, suspects: list[Any], now: datetime) -> None:
        """Entries sealed since, and recent ones, are fine; the others were inserted."""
        later = self._end.id + 1 if self._end else 1
        async with aclosing(seals.from_number(self._database, later)) as new:
            since = {ObjectId(oid) async for seal in new for oid, _, _ in seals.members_of(seal)}
        suspects = [oid for oid in suspects if oid not in since]
        for start in range(0, len(suspects), _AT_ONCE):
            where = {"_id": {"$in": suspects[start : start + _AT_ONCE]}}
            for raw in await self._logs.find(where).sort("createdAt", 1).to_list():
                self._judge_one(raw, now)

    def _judge_one(self, raw: dict[str, Any], now: datetime) -> None:
        oid, created, metadata = raw["_id"], raw.get("createdAt"), raw.get("metadata")
        if type(created) is not datetime or type(oid) is not ObjectId:
            self.report.add("inserted", "is in no seal, and has an id that Ximler does not make", entry=oid)
            return
        moment = EPOCH + (created - _EPOCH_NAIVE)
        if moment > now + MAX_DELAY:
            self.report.add(
                "inserted", f"is in no seal, and says that it was written in the future ({moment})", entry=oid
            )
        elif moment + MAX_DELAY >= now:
            self.report.waiting += 1
            mark = metadata.get("_audit", {}) if type(metadata) is dict else {}
            found = fingerprint.examine(raw)
            if raw.get("action") == Action.PERSON_ERASED and not found.problem and fingerprint.authentic(
                found.hash, mark.get("mac"), self._database.entry_keys
            ):  # fmt: skip
                self._erasures.add(str(raw.get("resourceId")))
        elif moment + MAX_DELAY < self._reached_at:
            self.report.add("inserted", f"is in no seal, though its time ({moment}) has been sealed", entry=oid)
        else:
            why = f"is in no seal since {moment}: no worker runs ('ximler audit seal' seals it), or it was inserted manually"
            self.report.add("unsealed", why, entry=oid)
