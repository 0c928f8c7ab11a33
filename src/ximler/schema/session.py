"""`sessions`: sign-ins. Private to accounts."""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import (
    AT_WRITE,
    Collection,
    Document,
    Index,
    Internal,
    ShardKey,
    Theirs,
    UserId,
    ascending,
)

__all__ = ["SESSIONS", "Session"]


class Session(Document, kw_only=True):
    """`id` is HMAC-SHA256(secret key, token): tokens cannot be derived from the database or a backup."""

    id: Internal[bytes] = field(name="_id")
    user_id: UserId
    created_at: Theirs[datetime] = AT_WRITE
    expires_at: Theirs[datetime]  # extended by use
    ends_at: Internal[datetime | None] = None  # the maximum lifetime; unset: `expires_at`
    family: Internal[bytes | None] = None  # after an exchange: the id of the sign-in's first session
    replaced_at: Internal[datetime | None] = None  # when its token was exchanged: later use indicates a copy
    authenticated_at: Internal[datetime | None] = None  # the latest authentication; unset: when it began
    address: Theirs[str | None] = None
    user_agent: Theirs[str | None] = None
    device: Internal[ObjectId | None] = None  # the id of the token by which the device is known at its next sign-in
    place: Theirs[str | None] = None  # city and country of the address, from the operator's GeoIP file

    @property
    def proved_at(self) -> datetime:
        return self.authenticated_at or self.created_at

    @property
    def sign_in_id(self) -> bytes:
        """The id of the sign-in, shared by exchanged sessions."""
        return self.family or self.id

    @property
    def public_id(self) -> str:
        """The id in lists. The prefix of a keyed hash does not reveal the token."""
        return self.id[:12].hex()


SESSIONS = Collection(
    name="sessions",
    document=Session,
    purpose="Sign-ins, by the keyed hash of their token.",
    owner="accounts",
    indexes=(
        ascending("userId", ours=True, why="a user's sessions, to list and revoke"),
        Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB when they expire"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "looked up by token on every request"),
)
