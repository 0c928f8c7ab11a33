"""Who may use a project: its owner, and the people with whom it is shared, as editor or reader.

Domain functions select projects by their owner, who is part of every filter. For a member they run with an
actor whose `user_id` is the owner and whose `member_id` is the member: limits and storage are the owner's,
and the audit log names both. A function is tried as the caller first, so that owners pay nothing for sharing;
only where it finds no project, the caller's share is read. Without one, the project is NotFound. A shared
function that another one calls reads no share in that first try, so that the outer one fails as a whole, and
runs once more as the owner.

Members have no access while the owner's account is closed or locked, as links have none.

A share belongs to an e-mail address until an account with that confirmed
address uses it; then to the account.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import msgspec
from bson import ObjectId

from ximler.accounts import account_status, addresses
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid, NotFound
from ximler.database import Database
from ximler.database.codec import codec_of
from ximler.schema.document import Document, Identified
from ximler.schema.project_share import PROJECT_SHARES, ProjectShare, Role
from ximler.schema.user import User

__all__ = ["claim", "editor", "find", "find_each", "key_of", "project_of", "reader", "through"]

P = ParamSpec("P")
T = TypeVar("T")
_Operation = Callable[Concatenate[Database, Actor, ObjectId, P], Awaitable[T]]
_Coroutine = Callable[Concatenate[Database, Actor, ObjectId, P], Coroutine[Any, Any, T]]

# Of users and projects that were reached through a share last: it is read first, which saves a command.
_shared: OrderedDict[tuple[ObjectId, ObjectId], None] = OrderedDict()
_MOST = 10_000
# The user and project of a function that is tried as the caller.
_tried: ContextVar[tuple[ObjectId, ObjectId] | None] = ContextVar("tried", default=None)


class _Address(Document, kw_only=True):
    email: str
    email_verified: bool = False


def reader(function: "_Operation[P, T]") -> "_Coroutine[P, T]":
    """Decorator: also for readers and editors of the project."""
    return _for(function, "READER")


def editor(function: "_Operation[P, T]") -> "_Coroutine[P, T]":
    """Decorator: also for editors of the project."""
    return _for(function, "EDITOR")


async def through(
    database: Database, actor: Actor, project_id: ObjectId, need: Role, act: Callable[[Actor], Awaitable[T]]
) -> T:
    """The result of `act`, called with the actor, and for a member once more as the owner.

    `act` must have no effect where it raises NotFound.
    Raises Forbidden for a reader who needs to be an editor.
    """
    if actor.member_id is not None:  # it acts for the owner already
        return await act(actor)
    key = actor.require_user(), project_id
    if _tried.get() == key:
        return await act(actor)
    if key in _shared:
        share = await find(database, *key)
        if share is None:
            _shared.pop(key, None)
            return await _as_caller(key, actor, act)
        return await _as_member(database, actor, share, need, act)
    try:
        return await _as_caller(key, actor, act)
    except NotFound:
        share = await find(database, *key)
        if share is None:
            raise
    _shared[key] = None
    if len(_shared) > _MOST:
        _shared.popitem(last=False)
    return await _as_member(database, actor, share, need, act)


async def find(database: Database, user_id: ObjectId, project_id: ObjectId) -> ProjectShare | None:
    """A user's share of a project of another user, whose account is open. One command;
    two more where they have none."""
    theirs = {"$match": {"projectId": project_id, "memberId": user_id}}
    rows = await database[PROJECT_SHARES].aggregate([theirs, {"$limit": 1}, *account_status.lookups()])
    if rows:
        owner = account_status.read(rows[0])
        return None if owner is None or owner.locked else codec_of(ProjectShare).decode(rows[0])
    email = await _confirmed(database, user_id)
    if email is None:
        return None
    pending = {"projectId": project_id, "email": email, "memberId": None, "userId": {"$ne": user_id}}
    share = await database[PROJECT_SHARES].find_and_patch(pending, {"$set": {"memberId": user_id}})
    if share is None or share.user_id not in await account_status.open_among(database, [share.user_id]):
        return None
    return share


async def find_each(
    database: Database, user_id: ObjectId, project_ids: Iterable[ObjectId]
) -> list[tuple[ProjectShare, User]]:
    """A user's shares of these projects, with their owners, whose account is open. One command."""
    theirs = {"$match": {"projectId": {"$in": list(project_ids)}, "memberId": user_id}}
    found = []
    for row in await database[PROJECT_SHARES].aggregate([theirs, *account_status.lookups()]):
        owner = account_status.read(row)
        if owner is not None and not owner.locked:
            found.append((codec_of(ProjectShare).decode(row), owner.user))
    return found


async def claim(database: Database, user_id: ObjectId) -> None:
    """Give the shares of a user's confirmed address to the user. Two commands."""
    email = await _confirmed(database, user_id)
    if email is not None:
        pending = {"email": email, "memberId": None, "userId": {"$ne": user_id}}
        await database[PROJECT_SHARES].patch_many(pending, {"$set": {"memberId": user_id}})


def key_of(project_id: ObjectId, email: str) -> bytes:
    """The id of a share: of a deleted one, the change stream has nothing else."""
    return project_id.binary + hashlib.sha256(email.encode()).digest()[:12]


def project_of(share_id: bytes) -> ObjectId:
    return ObjectId(share_id[:12])


def _for(function: "_Operation[P, T]", need: Role) -> "_Coroutine[P, T]":
    @wraps(function)
    async def accessed(database: Database, actor: Actor, project_id: ObjectId, *args: P.args, **kwargs: P.kwargs) -> T:
        async def act(acting: Actor) -> T:
            return await function(database, acting, project_id, *args, **kwargs)

        return await through(database, actor, project_id, need, act)

    return cast("_Coroutine[P, T]", accessed)  # its first arguments are given by position


async def _as_caller(key: tuple[ObjectId, ObjectId], actor: Actor, act: Callable[[Actor], Awaitable[T]]) -> T:
    before = _tried.set(key)
    try:
        return await act(actor)
    finally:
        _tried.reset(before)


async def _as_member(
    database: Database, actor: Actor, share: ProjectShare, need: Role, act: Callable[[Actor], Awaitable[T]]
) -> T:
    if need == "EDITOR" and share.role != "EDITOR":
        theirs = {"_id": share.project_id, "userId": share.user_id}
        if await database.projects.find_one(theirs, into=Identified) is None:  # deleted
            raise NotFound("No such project")
        raise Forbidden("The project is shared with you for reading: ask its owner for more")
    return await act(msgspec.structs.replace(actor, user_id=share.user_id, member_id=actor.user_id))


async def _confirmed(database: Database, user_id: ObjectId) -> str | None:
    """The normal form of a user's address, if it is confirmed."""
    user = await database.users.find_one({"_id": user_id}, into=_Address)
    if user is None or not user.email_verified:
        return None
    try:
        return addresses.normalised(user.email)
    except Invalid:  # written by another application
        return None
