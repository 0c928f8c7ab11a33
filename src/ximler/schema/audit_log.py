"""`auditlogs`: who did what, append-only."""

from typing import Annotated, Any

from bson import ObjectId
from msgspec import field

from ximler.schema.document import Collection, Created, Mixed, ShardKey, ascending, ref

__all__ = ["AUDIT_LOGS", "AuditLog"]


class AuditLog(Created, kw_only=True):
    user_id: Annotated[ObjectId | None, ref("users")] = None
    action: str
    resource: str
    resource_id: str | None = None
    metadata: Mixed = field(default_factory=dict[str, Any])
    ip_address: str | None = None
    user_agent: str | None = None


AUDIT_LOGS = Collection(
    name="auditlogs",
    document=AuditLog,
    purpose="Who did what, append-only.",
    owner="audit",
    indexes=(
        ascending("userId", why="a user's history"),
        ascending("action", why="search by action"),
        ascending("resource", "resourceId", why="a thing's history"),
        ascending("-createdAt", why="newest first"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "appended to by everybody at once; searched across shards, by operators"),
)
