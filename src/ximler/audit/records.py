"""One entry of the audit log, written in the transaction of the change that it tells of."""

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.schema.audit_log import AuditLog

__all__ = ["write"]


async def write(
    transaction: Database,
    actor: Actor,
    action: str,
    *,
    resource: str,
    resource_id: object | None = None,
    user_id: ObjectId | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    **details: Any,
) -> None:
    """Append an entry to the log. One command, in the transaction that `transaction` is bound to.

    `action` is `source.subject.verb` in the past tense, the source being the domain that writes: `accounts.password.changed`.
    `resource` is a collection's name. `user_id` is whose data it is, the actor's unless given. `before` and `after` hold what
    changed and nothing else; never a secret.
    """
    metadata: dict[str, Any] = {"actor": actor.kind, "via": actor.via, **details}
    if actor.user_id is not None and user_id not in (None, actor.user_id):
        metadata["actorId"] = actor.user_id
    if actor.api_key_id is not None:
        metadata["apiKeyId"] = actor.api_key_id
    if actor.request_id is not None:
        metadata["requestId"] = actor.request_id
    if before is not None:
        metadata["before"] = dict(before)
    if after is not None:
        metadata["after"] = dict(after)
    await transaction.audit_logs.insert(
        AuditLog(
            user_id=user_id or actor.user_id,
            action=action,
            resource=resource,
            resource_id=None if resource_id is None else str(resource_id),
            metadata=metadata,
            ip_address=actor.address,
            user_agent=actor.user_agent,
        )
    )
