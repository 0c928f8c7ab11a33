"""`auditseals`: the chain of seals over the audit log. Private to audit."""

from datetime import datetime
from typing import Literal

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, ShardKey, ascending

__all__ = ["SEALS", "Seal", "SealHead"]


class SealHead(Document, kw_only=True):
    """A seal without its members. `id` counts from 1: inserting the next number is the lease."""

    id: int = field(name="_id")
    kind: Literal["entries", "pruned"] = "entries"
    previous: bytes  # hash of the seal before
    count: int = 0
    first_at: datetime | None = None  # of its entries
    last_at: datetime | None = None
    reached_at: datetime  # entries committed until then are in this seal or an earlier one
    position: bytes | None = None  # of the change stream, to resume from
    pruned_through: int | None = None  # the last seal whose entries have been removed
    pruned_hash: bytes | None = None
    pruned_count: int | None = None
    members_hash: bytes
    sealed_at: datetime
    key_id: str
    signature: bytes


class Seal(SealHead, kw_only=True):
    """`members`: each entry's id (12 bytes), hash (32) and anomaly flags (1), in commit order."""

    members: bytes = b""
    created_at: datetime = AT_WRITE


SEALS = Collection(
    name="auditseals",
    document=Seal,
    purpose="Signed lists of audit entries and their hashes, each bound to the one before.",
    owner="audit",
    indexes=(ascending("kind", "-_id", ours=True, why="the last tombstone"),),
    shard_key=ShardKey((), "a chain: appended to at its end, read in order"),
)
