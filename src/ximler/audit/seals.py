"""The chain of seals: signed content, appending, and the head.

A seal lists entries in commit order and carries the hash of the seal before. Its number is its `_id`: of
several sealers that append at once one succeeds, and the others continue from its seal. No other lease is
needed, and no race lists an entry twice or leaves one out.
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

# What was odd about an entry when it was sealed.
OTHERS = 1  # without our mark: another application wrote it, or somebody by hand
FORGED = 2  # with a mark that none of our keys made
BACKDATED = 4  # its time is far from that of its commit
FOUND = 8  # by looking through the whole collection: the time of its commit is not known

MAX_MEMBERS = 10_000
FOUNDED_WITHIN = timedelta(hours=1)  # a chain that begins over older entries must be asked for
START = bytes(32)  # what the first seal has for the hash of the one before
_PREFIX = b"ximler seal 1"
_HASH = 32
_MEMBER = Layout(f"12s{_HASH}sB")
MEMBER_BYTES = _MEMBER.size

Member = tuple[bytes, bytes, int]  # (id, hash, what was odd)
H = TypeVar("H", bound=SealHead)


class Head(msgspec.Struct, frozen=True, rename="camel"):
    """Where the chain ends. Kept elsewhere, it proves later that nothing has been cut off."""

    number: int
    hash: str
    sealed_at: datetime
    public_keys: list[str] = []

    @classmethod
    def parse(cls, text: str) -> "Head":
        """From what `ximler audit head` printed: its JSON, or `number:hash`. Raises Invalid."""
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
    """Its entries; none where the list is not the one that the seal was made of."""
    packed = seal.members
    if len(packed) != seal.count * MEMBER_BYTES or digest_of(packed) != seal.members_hash:
        return []
    return list(_MEMBER.iter_unpack(packed))


def hash_of(seal: SealHead) -> bytes:
    """SHA-256 of everything but the signature; the members, which may be left unread, by their own hash."""
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
    """The seal that follows `after`; None when another sealer has appended one meanwhile. Raises NoSealKey.
    One command.
    """
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
    """The last seal that says what was pruned. It may be anybody's: check its signature."""
    return await database[SEALS].find_one({"kind": "pruned"}, into=SealHead, sort=[("_id", -1)])


async def from_number(database: Database, number: int, *, to: int | None = None) -> AsyncGenerator[Seal, None]:
    """The seals from `number` on, in order; none after `to`."""
    where = {"$gte": number} if to is None else {"$gte": number, "$lte": to}
    async for seal in database[SEALS].stream({"_id": where}, sort=[("_id", 1)], batch=50):
        yield seal


async def head(database: Database, keys: SealKeys | None = None) -> Head | None:
    """Where the chain ends now, with the public keys that check it."""
    end = await last(database)
    if end is None:
        return None
    return msgspec.structs.replace(head_of(end), public_keys=keys.public if keys else [])


def head_of(seal: SealHead) -> Head:
    """The chain's end as it is with this seal."""
    return Head(seal.id, hash_of(seal).hex(), seal.sealed_at)


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else to_ms(moment)
