"""`emailchanges`: e-mail addresses pending confirmation. Private to accounts."""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Index, Internal, Lowercase, ShardKey, UserId

__all__ = ["EMAIL_CHANGES", "EmailChange"]


class EmailChange(Document, kw_only=True):
    """One per user; a new request replaces it. The hash of its link's token is the user's
    `emailVerificationToken`.
    """

    id: UserId = field(name="_id")  # the user's
    request_id: Internal[ObjectId]  # the link's token is derived from it
    email: Internal[Lowercase]
    session_id: Internal[bytes | None] = None  # the requesting session, which survives the change
    attempts: Internal[int] = 0  # passwords tried with the link
    created_at: Internal[datetime] = AT_WRITE
    updated_at: Internal[datetime] = AT_WRITE
    expires_at: Internal[datetime]


EMAIL_CHANGES = Collection(
    name="emailchanges",
    document=EmailChange,
    purpose="E-mail addresses pending confirmation.",
    owner="accounts",
    indexes=(Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB when they expire"),),
    shard_key=ShardKey((("_id", "hashed"),), "written and found by user"),
)
