"""Resolvers of the audit log."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from ximler.audit import search
from ximler.core.ids import decode_cursor, object_id
from ximler.database.collection import Page
from ximler.graphql.context import Context
from ximler.graphql.engine import Connection, Resolvers, page_size
from ximler.schema.audit_log import AuditLog

resolvers = Resolvers()


class Entry(msgspec.Struct, frozen=True):
    """An entry as GraphQL shows it, to customers and to operators."""

    id: str
    action: str
    resource: str
    resource_id: str | None
    user_id: str | None
    address: str | None
    user_agent: str | None
    details: dict[str, Any]
    created_at: datetime

    @property
    def actor(self) -> str | None:
        return self.details.get("actor")

    @property
    def via(self) -> str | None:
        return self.details.get("via")


class Shown(msgspec.Struct, frozen=True):
    """A page of them."""

    items: list[Entry]
    cursors: Sequence[str]
    has_next: bool


@resolvers.query("securityHistory")
async def security_history(ctx: Context, first: int | None = None, after: str | None = None) -> Connection[Entry]:
    page = await search.history(ctx.database, ctx.actor, first=page_size(first), after=_position(after))
    return _connection(page)


@resolvers.query("auditLog")
async def audit_log(
    ctx: Context, user_id: str | None = None, first: int | None = None, after: str | None = None, **given: Any
) -> Connection[Entry]:
    page = await search.page(
        ctx.database,
        ctx.actor,
        user_id=None if user_id is None else object_id(user_id, "userId"),
        first=page_size(first),
        after=_position(after),
        **given,
    )
    return _connection(page)


def _position(after: str | None) -> Any:
    return None if after is None else decode_cursor(after)


def _connection(page: Page[AuditLog]) -> Connection[Entry]:
    entries = [
        Entry(
            id=str(entry.id),
            action=entry.action,
            resource=entry.resource,
            resource_id=entry.resource_id,
            user_id=None if entry.user_id is None else str(entry.user_id),
            address=entry.ip_address,
            user_agent=entry.user_agent,
            details=search.details(entry),
            created_at=entry.created_at,
        )
        for entry in page.items
    ]
    return Connection(Shown(entries, page.cursors, page.has_next))
