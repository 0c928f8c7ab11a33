"""Writes entries of the audit log, in the transaction of the change that they record."""

from collections.abc import Mapping
from typing import Any

from bson import ObjectId

from ximler.audit import fingerprint
from ximler.audit.actions import Action
from ximler.audit.redaction import cleaned, personal_paths
from ximler.core import pacing
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.schema.audit_log import AuditLog

__all__ = ["entry", "write", "write_each"]

_MAX_AGENT = 512


async def write(
    transaction: Database,
    actor: Actor,
    action: Action,
    *,
    resource: str,
    resource_id: object | None = None,
    user_id: ObjectId | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    **details: Any,
) -> None:
    """Append an entry to the log. One command, in the transaction that `transaction` is bound to.

    `resource` is a collection's name. `user_id` is the user concerned, by default the actor. `before` and
    `after` contain only changed values. Values with secret names are redacted, and personal ones can be
    erased later without invalidating the entry's fingerprint: see `redaction`. Raises Invalid for values that
    cannot be stored.
    """
    metadata = _origin(actor, user_id) | details
    if before is not None:
        metadata["before"] = dict(before)
    if after is not None:
        metadata["after"] = dict(after)
    made = entry(
        transaction, actor, action, resource=resource, resource_id=resource_id, user_id=user_id, metadata=metadata
    )
    await transaction.audit_logs.insert_encoded([made])


async def write_each(
    transaction: Database,
    actor: Actor,
    action: Action,
    *,
    resource: str,
    removed: Mapping[Any, Mapping[str, Any]],
    user_id: ObjectId | None = None,
) -> None:
    """Append an entry for each removed document, with its former fields. One command, and the loop is free in
    between. See `write`.
    """
    origin = _origin(actor, user_id)
    made = []
    for resource_id, before in removed.items():
        await pacing.yield_turn()
        metadata = {**origin, "before": dict(before)}
        made.append(
            entry(
                transaction,
                actor,
                action,
                resource=resource,
                resource_id=resource_id,
                user_id=user_id,
                metadata=metadata,
            )
        )
    await transaction.audit_logs.insert_encoded(made)


def entry(
    database: Database,
    actor: Actor,
    action: Action,
    *,
    resource: str,
    resource_id: object | None = None,
    user_id: ObjectId | None = None,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """An entry with its fingerprint, as it is stored."""
    made = AuditLog(
        user_id=user_id or actor.user_id,
        action=Action(action).value,
        resource=resource,
        resource_id=None if resource_id is None else str(resource_id),
        metadata=cleaned(metadata),
        ip_address=actor.address,
        user_agent=None if actor.user_agent is None else actor.user_agent[:_MAX_AGENT],
        created_at=database.clock.now(),
    )
    raw = codec_of(AuditLog).encode(made, made.created_at.replace(tzinfo=None))
    raw["metadata"]["_audit"] = _fingerprint(raw, database)
    return raw


def _origin(actor: Actor, user_id: ObjectId | None) -> dict[str, Any]:
    """The actor and channel of the action."""
    origin: dict[str, Any] = {"actor": actor.kind, "via": actor.via}
    if actor.user_id is not None and user_id not in (None, actor.user_id):
        origin["actorId"] = actor.user_id
    if actor.member_id is not None:
        origin["actorId"] = actor.member_id
    if actor.api_key_id is not None:
        origin["apiKeyId"] = actor.api_key_id
    if actor.request_id is not None:
        origin["requestId"] = actor.request_id
    return origin


def _fingerprint(raw: dict[str, Any], database: Database) -> dict[str, Any]:
    whose = "actor" if "actorId" in raw["metadata"] else "person"
    personal: list[tuple[str, str, Any]]
    personal = [(name, whose, raw[name]) for name in ("ipAddress", "userAgent") if name in raw]
    personal += [(path, "person", _at(raw, path)) for path in personal_paths(raw["metadata"])]
    return fingerprint.make(raw, personal, database.entry_keys)


def _at(raw: dict[str, Any], path: str) -> Any:
    for name in path.split("."):
        raw = raw[name]
    return raw
