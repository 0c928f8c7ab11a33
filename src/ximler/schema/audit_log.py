"""`auditlogs`: the audit log, append-only."""

from typing import Any

from msgspec import field

from ximler.schema.document import Collection, Created, Mixed, Record, ShardKey, Theirs, UserId, ascending

__all__ = ["AUDIT_LOGS", "AuditLog"]


class AuditLog(Created, kw_only=True):
    """`metadata`: `actor` and `via` (the channel), `actorId` if the actor is not the user, `before` and
    `after`, and `_audit`, the entry's fingerprint (see `ximler.audit.fingerprint`).
    """

    user_id: UserId | None = None
    action: Record[str]
    resource: Record[str]
    resource_id: Record[str | None] = None
    metadata: Theirs[Mixed] = field(default_factory=dict[str, Any])
    ip_address: Theirs[str | None] = None
    user_agent: Theirs[str | None] = None


AUDIT_LOGS = Collection(
    name="auditlogs",
    document=AuditLog,
    purpose="The audit log: security-relevant actions, append-only.",
    owner="audit",
    indexes=(
        ascending("userId", why="a user's history"),
        ascending("action", why="search by action"),
        ascending("resource", "resourceId", why="a resource's history"),
        ascending("-createdAt", why="newest first"),
        ascending("-createdAt", "-_id", ours=True, why="operators' list, newest first, by pages"),
        ascending("userId", "-createdAt", "-_id", ours=True, why="a user's history, newest first"),
        ascending("action", "-createdAt", "-_id", ours=True, why="entries of an action, newest first"),
        ascending("resource", "-createdAt", "-_id", ours=True, why="entries about one kind of resource, newest first"),
        ascending("metadata.actorId", ours=True, why="a user's actions on others, to erase them"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "many concurrent appends; operators search across shards"),
)
