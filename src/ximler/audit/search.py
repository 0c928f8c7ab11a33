"""Reading the log: operators search all of it, customers see their own security history.

By user, action, resource and time, newest first, by keyset. An operator's search for a user's entries is
audited too.
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

# Of what others did to an account, its owner sees that and when, not from where.
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
    """Entries that match all that is given, newest first. Operators only. Raises Invalid, Forbidden.

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
    """What was done by the actor and to their account, newest first; without what is of others. One command."""
    found = await database.audit_logs.page(visible_to_owner(actor.require_user()), first=first, after=after)
    for entry in found.items:
        without_others(entry)
    return found


def visible_to_owner(user_id: ObjectId) -> dict[str, Any]:
    """The entries that a customer may see: not those of operators' read access."""
    return {"userId": user_id, "action": {"$not": {"$regex": r"\.read$"}}}


def without_others(entry: AuditLog) -> AuditLog:
    """The same entry, without what it says of somebody else who acted."""
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
    """The filter. Raises Invalid for a resource's id without the resource, and for a time that ends before it
    begins.
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
    """The entry's metadata for people: without its fingerprint."""
    metadata = entry.metadata if isinstance(entry.metadata, dict) else {"value": entry.metadata}
    return {name: value for name, value in metadata.items() if name != "_audit"}
