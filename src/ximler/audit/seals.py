"""The chain of seals: signed content, appending, and the head.

A seal lists entries in commit order and carries the hash of the previous seal. Its number is its `_id`: of
concurrent sealers one succeeds, and the others continue from its seal. This replaces a lease, and no race
lists an entry twice or omits one.
"""

import hashlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import datetime, timedelta
from struct import Struct as Layout
from typing import Any, TypeVar

import bson
import msgspec

from ximler.audit.keys import SealKeys
from ximler.core.clock import EPOCH, to_ms
from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.seal import SEALS, Seal, SealHead

__all__ = [
    "BACKDATED",
    "FORGED",
    "FOUND",
    "FOUNDED_WITHIN",
    "MAX_MEMBERS",
    "MEMBER_BYTES",
    "OTHERS",
    "START",
    "Head",
    "Member",
    "append",
    "digest_of",
    "from_number",
    "genuine",
    "hash_of",
    "head",
    "head_of",
    "last",
    "members_of",
    "pack",
    "tombstone",
]  # fmt: skip

# Flags of an entry at the time it was sealed.
OTHERS = 1  # without our mark: written by another application, or manually
FORGED = 2  # with an invalid mark
BACKDATED = 4  # its time differs widely from its commit time
FOUND = 8  # found by a scan: its commit time is unknown

MAX_MEMBERS = 10_000
FOUNDED_WITHIN = timedelta(hours=1)  # a chain over older entries must be requested explicitly
START = bytes(32)  # the previous hash of the first seal
_PREFIX = b"ximler seal 1"
_HASH = 32
_MEMBER = Layout(f"12s{_HASH}sB")
MEMBER_BYTES = _MEMBER.size

Member = tuple[bytes, bytes, int]  # (id, hash, flags)
H = TypeVar("H", bound=SealHead)


class Head(msgspec.Struct, frozen=True, rename="camel"):
    """The end of the chain. Kept elsewhere, it later proves that the chain was not truncated."""

    number: int
    hash: str
    sealed_at: datetime
    public_keys: list[str] = []

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Parse the output of `ximler audit head`: its JSON, or `number:hash`. Raises Invalid."""
        try:
            if text.lstrip().startswith("{"):
                return msgspec.json.decode(text, type=Head)
            number, _, digest = text.strip().partition(":")
            if len(bytes.fromhex(digest)) == _HASH:
                return cls(int(number), digest.lower(), EPOCH)
        except (ValueError, msgspec.DecodeError):
            pass
        raise Invalid.field("head", "is not what 'ximler audit head' prints (its JSON, or number:hash)")


def digest_of(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()


def pack(members: Iterable[Member]) -> bytes:
    return b"".join(b"%b%b%c" % member for member in members)


def members_of(seal: Seal) -> list[Member]:
    """The seal's entries; none if the list does not match its hash."""
    packed = seal.members
    if len(packed) != seal.count * MEMBER_BYTES or digest_of(packed) != seal.members_hash:
        return []
    return list(_MEMBER.iter_unpack(packed))


def hash_of(seal: SealHead) -> bytes:
    """SHA-256 of all fields except the signature; the members, which need not be loaded, enter by their own
    hash.
    """
    content = (
        seal.id, seal.kind, seal.previous, seal.count, _ms(seal.first_at), _ms(seal.last_at), _ms(seal.reached_at),
        seal.position, seal.pruned_through, seal.pruned_hash, seal.pruned_count, seal.members_hash, _ms(seal.sealed_at),
        seal.key_id,
    )  # fmt: skip
    return hashlib.sha256(_PREFIX + bson.encode({"c": content})).digest()


def genuine(seal: SealHead, keys: SealKeys) -> bool:
    """Whether one of our keys signed it."""
    return bool(keys.verifies(seal.key_id, hash_of(seal), seal.signature))


async def append(
    database: Database, keys: SealKeys, after: SealHead | None, members: Sequence[Member] = (), **content: Any
) -> Seal | None:
    """Append a seal after `after`; None if another sealer was faster. Raises NoSealKey. One command."""
    packed = pack(members)
    seal = Seal(
        id=1 if after is None else after.id + 1,
        previous=START if after is None else hash_of(after),
        count=len(members),
        members=packed,
        members_hash=digest_of(packed),
        sealed_at=database.clock.now(),
        key_id=keys.sign(b"")[0],
        signature=b"",
        **content,
    )
    seal.signature = keys.sign(hash_of(seal))[1]
    try:
        return await database[SEALS].insert(seal)
    except DocumentExists:
        return None


async def last(database: Database) -> SealHead | None:
    return await database[SEALS].find_one({}, into=SealHead, sort=[("_id", -1)])


async def tombstone(database: Database) -> SealHead | None:
    """The last tombstone of a pruning. It may be forged: check its signature."""
    return await database[SEALS].find_one({"kind": "pruned"}, into=SealHead, sort=[("_id", -1)])


async def from_number(database: Database, number: int, *, to: int | None = None) -> AsyncGenerator[Seal, None]:
    """The seals from `number` on, in order; none after `to`."""
    where = {"$gte": number} if to is None else {"$gte": number, "$lte": to}
    async for seal in database[SEALS].stream({"_id": where}, sort=[("_id", 1)], batch=50):
        yield seal


async def head(database: Database, keys: SealKeys | None = None) -> Head | None:
    """The current end of the chain, with the public keys that verify it."""
    end = await last(database)
    if end is None:
        return None
    return msgspec.structs.replace(head_of(end), public_keys=keys.public if keys else [])


def head_of(seal: SealHead) -> Head:
    """The head that this seal makes."""
    return Head(seal.id, hash_of(seal).hex(), seal.sealed_at)


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)
