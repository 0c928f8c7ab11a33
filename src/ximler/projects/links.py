"""Public links: a token that reads one project until it expires or is revoked.

    xil_<project><link><secret>

The ids only find the link; the secret has 160 random bits. The token is shown once and stored as its SHA-256.
A link reads the project as it is now, its canvas and assets, but no versions and no other project, and
changes nothing. It ends with its project, and with its owner's access: accounts that are closed or locked
have no links.
"""

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple

from bson import ObjectId

from ximler.accounts import account_status
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, LimitExceeded, NotFound
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.database.collection import Page
from ximler.projects import projects
from ximler.projects.projects import ProjectSummary
from ximler.schema.project_share import PROJECT_LINKS, ProjectLink

__all__ = ["LONGEST", "MOST", "PREFIX", "Opened", "ProjectLink", "create", "open_link", "page", "revoke"]

PREFIX = "xil_"
MOST = 20  # links of a project
LONGEST = timedelta(days=366)
USUAL = timedelta(days=30)
_TOKEN = re.compile(PREFIX + "([0-9a-f]{24})([0-9a-f]{24})[0-9a-f]{40}")


class Opened(NamedTuple):
    """A link that was followed: `actor` reads as the owner does, and is passed to reading functions only."""

    link: ProjectLink
    project: ProjectSummary
    actor: Actor


async def create(
    database: Database, actor: Actor, project_id: ObjectId, *, expires_at: datetime | None = None
) -> tuple[ProjectLink, str]:
    """A new link to a project of the actor's, and its token; by default for 30 days, at most for 366.

    Raises NotFound, Invalid, LimitExceeded.
    """
    user_id = actor.require_user()
    now = database.clock.now()
    expires_at = expires_at or now + USUAL
    if not now < expires_at <= now + LONGEST:
        raise Invalid.field("expiresAt", f"must be in the future, and at most {LONGEST.days} days from now")
    await projects.get_own(database, actor, project_id)
    link = ProjectLink(user_id=user_id, project_id=project_id, token_hash=b"", expires_at=expires_at)
    token = f"{PREFIX}{project_id}{link.id}{secrets.token_hex(20)}"
    link.token_hash = _hash(token)

    async def write(transaction: Database) -> ProjectLink:
        # Links that are made at the same moment conflict here, so that each counts those before it.
        await projects.touch(transaction, user_id, project_id)
        if await transaction[PROJECT_LINKS].count(_of(user_id, project_id)) >= MOST:
            raise LimitExceeded(f"The project has {MOST} links, the most: revoke some")
        made = await transaction[PROJECT_LINKS].insert(link)
        await _record(transaction, actor, Action.LINK_CREATED, made)
        return made

    return await database.transaction(write), token


async def page(
    database: Database, actor: Actor, project_id: ObjectId, *, first: int = 20, after: Position | None = None
) -> Page[ProjectLink]:
    """The links of a project of the actor's, newest first. Raises NotFound."""
    await projects.get_own(database, actor, project_id)
    mine = _of(actor.require_user(), project_id)
    return await database[PROJECT_LINKS].page(mine, first=first, after=after)


async def revoke(database: Database, actor: Actor, project_id: ObjectId, link_id: ObjectId) -> None:
    """End a link at once. Raises NotFound."""
    user_id = actor.require_user()

    async def write(transaction: Database) -> None:
        where = {"_id": link_id, **_of(user_id, project_id)}
        link = await transaction[PROJECT_LINKS].find_one(where)
        if link is None or not await transaction[PROJECT_LINKS].delete(where):
            raise NotFound("No such link")
        await _record(transaction, actor, Action.LINK_REVOKED, link)

    await database.transaction(write)


async def open_link(database: Database, visitor: Actor, token: str) -> Opened:
    """The project of a token. Raises NotFound for every token that opens none. Two commands."""
    parsed = _TOKEN.fullmatch(token)
    if parsed is None:
        raise _no_link()
    project_id, link_id = ObjectId(parsed[1]), ObjectId(parsed[2])
    where = {"_id": link_id, "projectId": project_id}
    found = await database[PROJECT_LINKS].aggregate([{"$match": where}, *account_status.lookups()])
    if not found or not hmac.compare_digest(found[0]["tokenHash"], _hash(token)):
        raise _no_link()
    owner = account_status.read(found[0])
    link = codec_of(ProjectLink).decode(found[0])
    # MongoDB removes expired links within a minute, not at once.
    if owner is None or owner.locked or link.expires_at <= database.clock.now():
        raise _no_link()
    acting = Actor(
        user_id=link.user_id, address=visitor.address, user_agent=visitor.user_agent, request_id=visitor.request_id
    )
    try:
        return Opened(link, await projects.get_own(database, acting, project_id), acting)
    except NotFound:
        raise _no_link() from None


async def _record(transaction: Database, actor: Actor, action: Action, link: ProjectLink) -> None:
    values = {"expiresAt": link.expires_at, "linkId": str(link.id)}
    await records.write(
        transaction,
        actor,
        action,
        resource="projects",
        resource_id=link.project_id,
        after=values if action is Action.LINK_CREATED else None,
        before=values if action is Action.LINK_REVOKED else None,
    )


def _of(user_id: ObjectId, project_id: ObjectId) -> dict[str, ObjectId]:
    return {"userId": user_id, "projectId": project_id}


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _no_link() -> NotFound:
    return NotFound("No such link, or it has expired or was revoked")
