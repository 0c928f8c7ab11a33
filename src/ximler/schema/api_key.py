"""`apikeys`: keys for programs that act for a user."""

from datetime import datetime
from typing import Annotated

from bson import ObjectId
from msgspec import field

from ximler.schema.document import Collection, Created, Internal, ShardKey, Theirs, UserId, ascending, ref

__all__ = ["API_KEYS", "ApiKey"]


class ApiKey(Created, kw_only=True):
    user_id: UserId
    name: Theirs[str]
    key_hash: Internal[str]  # SHA-256 of the key; the key itself is shown once and kept nowhere
    permissions: Theirs[list[str]] = field(default_factory=list)  # scopes, such as `projects:read`
    last_used: Theirs[datetime | None] = None
    expires_at: Theirs[datetime | None] = None
    revoked_at: Theirs[datetime | None] = None
    # Fields of our own, all optional for Mongoose applications.
    hint: Theirs[str | None] = None  # its last four characters
    allowed_addresses: Theirs[list[str]] = field(default_factory=list)  # networks from which it is accepted; empty: any
    replaced_by: Theirs[Annotated[ObjectId, ref("apikeys")] | None] = (
        None  # its successor after a rotation; valid until `expires_at`
    )


API_KEYS = Collection(
    name="apikeys",
    document=ApiKey,
    purpose="Keys for programs that act for a user.",
    owner="apikeys",
    indexes=(
        ascending("userId", why="a user's keys"),
        ascending("keyHash", why="verification"),
        ascending("expiresAt", why="keys that expire next"),
        ascending("revokedAt", why="reports"),
    ),
    shard_key=ShardKey((), "found by hash and by user alike: small, kept on one shard"),
)
