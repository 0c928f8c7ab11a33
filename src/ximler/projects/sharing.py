"""Sharing projects with people, by e-mail address (`access` says what a share allows).

The person need not have an account: the share becomes theirs when they use it with that confirmed address.
The owner does not learn whether the address has an account. Mail to an address without one contains no text
that the owner chose, and an owner can share only so often, so that shares are no way to send advertisements.
An address without an account receives only so many mails, from all owners together; no owner delays another
one's shares with it.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from bson import ObjectId
from msgspec import field

from ximler.accounts import account_status, addresses, throttle
from ximler.accounts.keyring import Keyring
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid, LimitExceeded, NotFound
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.collection import Page
from ximler.notifications import inbox
from ximler.notifications.email import Mailer, compose
from ximler.projects import access, projects
from ximler.projects.projects import ProjectSummary
from ximler.schema.document import Document, Identified
from ximler.schema.project_share import PROJECT_SHARES, ProjectShare, Role

__all__ = [
    "MOST",
    "ProjectShare",
    "Role",
    "Shared",
    "erase",
    "invite",
    "leave",
    "page",
    "people",
    "revoke",
    "share",
    "shared_with",
]  # fmt: skip

MOST = 100  # people of a project
_MOST_LISTED = 1000  # projects that are shared with a person
_PER_OWNER = throttle.Rule(name="share", free=50, window=timedelta(days=1), first_s=60, longest_s=86_400)
_PER_ADDRESS = throttle.Rule(name="share-with", free=10, window=timedelta(days=1), first_s=60, longest_s=86_400)
_MAILS = throttle.Rule(name="share-mail", free=10, window=timedelta(days=1), first_s=60, longest_s=86_400)


class _Owner(Document, kw_only=True):
    email: str
    email_verified: bool = False


class _Place(Document, kw_only=True):
    """A share's project and its owner, as the index of `memberId` has them."""

    id: bytes = field(name="_id")
    user_id: ObjectId


async def share(
    database: Database, keyring: Keyring, actor: Actor, project_id: ObjectId, *, email: str, role: Role
) -> ProjectShare:
    """Let a person read or edit a project of the actor's, or change their role. A new person is notified.

    Raises NotFound, Invalid, LimitExceeded, Throttled,
    and Forbidden unless the actor's own address is confirmed.
    """
    user_id = actor.require_user()
    email = addresses.normalised(email)
    owner = await database.users.find_one({"_id": user_id}, into=_Owner)
    if owner is None or not owner.email_verified:
        raise Forbidden("Confirm your e-mail address before you share a project")
    if email in addresses.alternatives(owner.email):
        raise Invalid.field("email", "is your own address")
    mine = {"_id": project_id, "userId": user_id}
    if await database.projects.find_one(mine, into=Identified) is None:
        raise _no_project()
    fresh = ProjectShare(
        id=access.key_of(project_id, email), user_id=user_id, project_id=project_id, email=email, role=role
    )
    where = {"_id": fresh.id, "projectId": project_id, "userId": user_id}
    if await database[PROJECT_SHARES].find_one(where) is None:
        of_both = throttle.key(keyring, _PER_ADDRESS, f"{user_id}|{email}")
        await throttle.spend(database, [throttle.key(keyring, _PER_OWNER, str(user_id)), of_both])

    async def write(transaction: Database) -> ProjectShare:
        known = await transaction[PROJECT_SHARES].find_and_patch(where, {"$set": {"role": role}}, before=True)
        if known is not None and known.role == role:
            return known
        if known is None:
            # Shares that are made at the same moment conflict here, so that each counts those before it.
            await projects.touch(transaction, user_id, project_id)
            if await transaction[PROJECT_SHARES].count({"projectId": project_id, "userId": user_id}) >= MOST:
                raise LimitExceeded(f"The project is shared with {MOST} people, the most: remove some")
            known = await transaction[PROJECT_SHARES].insert(fresh)
            await invite.enqueue(transaction, Invited(share_id=fresh.id, project_id=project_id))
        known.role = role
        await _record(transaction, actor, Action.PROJECT_SHARED, known)
        return known

    return await database.transaction(write)


async def revoke(database: Database, actor: Actor, project_id: ObjectId, email: str) -> None:
    """End a person's access to a project of the actor's, at once. Raises NotFound."""
    where = {"_id": access.key_of(project_id, addresses.normalised(email)), "userId": actor.require_user()}
    await _end(database, actor, project_id, where)


async def leave(database: Database, actor: Actor, project_id: ObjectId) -> None:
    """Give up a project that is shared with the actor. Raises NotFound."""
    await _end(database, actor, project_id, {"memberId": actor.require_user()})


async def page(
    database: Database,
    actor: Actor,
    *,
    query: str | None = None,
    first: int = 20,
    after: Any = None,
    sort: str | None = None,
) -> Page[ProjectSummary]:
    """The projects that are shared with the actor, in the order of `projects.SORTS` that `sort` names
    (default: newest first), searched like the actor's own. Five commands; two more if one of the page's
    owners has closed their account.

    Of more than a thousand shares, those of the newest projects count.
    """
    user_id = actor.require_user()
    await access.claim(database, user_id)
    shares = await database[PROJECT_SHARES].find(
        {"memberId": user_id}, into=_Place, sort=[("_id", -1)], limit=_MOST_LISTED
    )
    which = [(each.user_id, access.project_of(each.id)) for each in shares]
    found = await projects.page_of(database, which, query, first, after, sort)
    # Most accounts are open, and a page has few owners.
    owners = {each.user_id for each in found.items}
    if owners and owners != await account_status.open_among(database, owners):
        remaining = await account_status.open_among(database, {owner for owner, _ in which})
        which = [each for each in which if each[0] in remaining]
        found = await projects.page_of(database, which, query, first, after, sort)
    return found


async def people(database: Database, actor: Actor, project_id: ObjectId) -> list[ProjectShare]:
    """The people with whom a project of the actor's is shared, oldest first. Raises NotFound."""
    mine = {"_id": project_id, "userId": actor.require_user()}
    if await database.projects.find_one(mine, into=Identified) is None:
        raise _no_project()
    theirs = {"userId": actor.require_user(), "projectId": project_id}
    return await database[PROJECT_SHARES].find(theirs, sort=[("createdAt", 1)], limit=MOST)


class Shared(NamedTuple):
    """The actor's role in a project of `owner`, a name."""

    role: Role
    owner: str


async def shared_with(database: Database, actor: Actor, project_ids: list[ObjectId]) -> dict[ObjectId, Shared]:
    """The actor's roles in projects of others whose account is open. One command, none for no projects."""
    if not project_ids:
        return {}
    shares = await access.find_each(database, actor.require_user(), project_ids)
    return {each.project_id: Shared(each.role, owner.name) for each, owner in shares}


async def erase(database: Database, user_id: ObjectId, email: str) -> None:
    """Remove the access of a user who is erased, and shares with their address."""
    await database[PROJECT_SHARES].delete_many({"$or": [{"memberId": user_id}, {"email": email}]})


class Invited(Document, kw_only=True):
    share_id: bytes
    project_id: ObjectId


@outbox.job("projects.invite", Invited)
async def invite(
    payload: Invited, *, database: Database, keyring: Keyring, job: outbox.Job, settings: Settings, mailer: Mailer
) -> None:
    """The job behind `share`: notify the person, or mail an address that has no account.

    Nothing is sent once the share is revoked or the project deleted,
    nor to an address that has had `_MAILS` today.
    """
    share = await database[PROJECT_SHARES].find_one({"_id": payload.share_id, "projectId": payload.project_id})
    if share is None:
        return
    project = await database.projects.find_one({"_id": share.project_id, "userId": share.user_id}, into=Identified)
    owner = await database.users.find_one({"_id": share.user_id}, into=_Owner)
    if project is None or owner is None:
        return
    person = await addresses.holder(database, share.email)
    verb = "edit" if share.role == "EDITOR" else "read"
    if person is None:
        try:
            await throttle.spend(database, [throttle.key(keyring, _MAILS, share.email)])
        except throttle.Throttled:
            return
        await mailer.send(
            compose(
                "shared",
                settings,
                to=share.email,
                subject="A project was shared with you",
                key=f"share:{job.id}",
                # Of another's choosing: evil.example/x@example.com is an address.
                owner="Someone" if names.has_link(owner.email) else owner.email,
                verb=verb,
                link=settings.base_url,
                label="Create an account",
            )
        )
    elif person.deleted_at is None and person.email_verified:
        await inbox.notify(
            database,
            person,
            "PRODUCT",
            "A project was shared with you",
            # Without names: the owner's erasure does not reach the inboxes of others.
            f"You can {verb} it. Your list of shared projects shows its name and its owner.",
            {"projectId": str(share.project_id)},
            occasion=job.id,
        )


async def _end(database: Database, actor: Actor, project_id: ObjectId, where: dict[str, object]) -> None:
    async def write(transaction: Database) -> None:
        found = await transaction[PROJECT_SHARES].find_one({**where, "projectId": project_id})
        if found is None or not await transaction[PROJECT_SHARES].delete({"_id": found.id, "projectId": project_id}):
            raise NotFound("No such share")
        await _record(transaction, actor, Action.PROJECT_UNSHARED, found)

    await database.transaction(write)


async def _record(transaction: Database, actor: Actor, action: Action, share: ProjectShare) -> None:
    # The entry is the owner's and outlives the person's erasure.
    # Their id would show the owner who has an account.
    values = {"person": addresses.masked(share.email), "role": share.role}
    await records.write(
        transaction,
        actor,
        action,
        resource="projects",
        resource_id=share.project_id,
        user_id=share.user_id,
        after=values if action is Action.PROJECT_SHARED else None,
        before=values if action is Action.PROJECT_UNSHARED else None,
    )


def _no_project() -> NotFound:
    return NotFound("No such project")
