"""Reading the log: operators search all of it, customers see their own security history.

By user, action, resource and time, newest first, with keyset pagination. An operator's search for a user's
entries is audited.
"""

from datetime import datetime
from typing import Any

from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.schema.audit_log import AuditLog

__all__ = ["condition", "details", "history", "page"]

# Metadata that users see of others' actions on their account; address and browser are hidden.
_SAFE = frozenset({"actor", "via"})


async def page(
    database: Database,
    actor: Actor,
    *,
    user_id: ObjectId | None = None,
    action: str | None = None,
    resource: str | None = None,
    resource_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    first: int = 20,
    after: Position | None = None,
) -> Page[AuditLog]:
    """Entries that match every given argument, newest first. Operators only. Raises Invalid, Forbidden.

    A search for a user's entries is audited, with the first page. One command, then two.
    """
    actor.require_operator()
    where = condition(
        user_id=user_id, action=action, resource=resource, resource_id=resource_id, since=since, until=until
    )
    found = await database.audit_logs.page(where, first=first, after=after)
    if user_id is not None and after is None:
        await records.write(
            database, actor, Action.LOG_READ, resource="auditlogs", user_id=user_id, matching=action or resource
        )
    return found


async def history(
    database: Database, actor: Actor, *, first: int = 20, after: Position | None = None
) -> Page[AuditLog]:
    """Actions by the actor and on their account, newest first, without data of other people. One command."""
    found = await database.audit_logs.page(visible_to_owner(actor.require_user()), first=first, after=after)
    for entry in found.items:
        without_others(entry)
    return found


def visible_to_owner(user_id: ObjectId) -> dict[str, Any]:
    """Filter for the entries that a user may see: all but operators' read access."""
    return {"userId": user_id, "action": {"$not": {"$regex": r"\.read$"}}}


def without_others(entry: AuditLog) -> AuditLog:
    """The entry without data of another person who acted."""
    if "actorId" in entry.metadata or entry.metadata.get("actor") not in (None, "user", "anonymous"):
        entry.ip_address = entry.user_agent = None
    entry.metadata = {name: entry.metadata[name] for name in _SAFE & entry.metadata.keys()}
    return entry


def condition(
    *,
    user_id: ObjectId | None = None,
    action: str | None = None,
    resource: str | None = None,
    resource_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """The filter. Raises Invalid for a resource's id without the resource, and for a range that ends before
    it begins.
    """
    if resource_id is not None and resource is None:
        raise Invalid.field("resource", "is required with the id of one")
    if since is not None and until is not None and until <= since:
        raise Invalid.field("until", "is not after since")
    given = {"userId": user_id, "action": action, "resource": resource, "resourceId": resource_id}
    where: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if span := {op: moment for op, moment in (("$gte", since), ("$lt", until)) if moment is not None}:
        where["createdAt"] = span
    return where


def details(entry: AuditLog) -> dict[str, Any]:
    """The entry's metadata without its fingerprint."""
    metadata = entry.metadata if isinstance(entry.metadata, dict) else {"value": entry.metadata}
    return {name: value for name, value in metadata.items() if name != "_audit"}
