"""Account status: the user of a session or key, their role and lock, read in the same command.

For caches over the change feed: `lookups` joins the status to a document with a `userId`, `read` takes it
from the result, `tags` lists the documents it depends on.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from bson import ObjectId

from ximler.core.errors import Forbidden
from ximler.database import Database
from ximler.database.cache import Tag, Watch
from ximler.database.codec import codec_of
from ximler.schema.credential import CREDENTIALS, Credential
from ximler.schema.user import USERS, User

__all__ = ["WATCHES", "AccountLocked", "AccountStatus", "forget", "lookups", "open_among", "read", "tags"]

# Fields that a sign-in writes. They do not affect the account status.
_FACTORS = frozenset(
    {
        *("totpLastStep", "totpPending", "totpPendingAt"),
        *("factorAttempts", "recoveryCodes", "updatedAt"),
        *("places", "browsers", "reported", "devices", "returned"),
    }
)

WATCHES = (
    Watch(collection=USERS.name),
    Watch(collection=CREDENTIALS.name, indifferent=_FACTORS),
)


class AccountLocked(Forbidden):
    code = "ACCOUNT_LOCKED"


class AccountStatus(msgspec.Struct, frozen=True, gc=False):
    """A live user, their role, whether they have a second factor,
    and whether an operator has locked the account."""

    user: User
    operator: bool
    locked: bool
    factor: bool = False

    def require_unlocked(self) -> None:
        """Raises AccountLocked."""
        if self.locked:
            raise AccountLocked("This account is locked: write to support to have it opened")


def lookups() -> list[dict[str, Any]]:
    """Pipeline stages that join the account status to documents with a `userId`."""
    return [
        {"$lookup": {"from": USERS.name, "localField": "userId", "foreignField": "_id", "as": "user"}},
        {"$lookup": {"from": CREDENTIALS.name, "localField": "userId", "foreignField": "_id", "as": "credential"}},
    ]


def read(row: Mapping[str, Any]) -> AccountStatus | None:
    """The account status in a row of `lookups`; None if the account is closed or missing."""
    users = [user for user in row["user"] if user.get("deletedAt") is None]
    if not users:
        return None
    credential = codec_of(Credential).decode(row["credential"][0]) if row["credential"] else None
    return AccountStatus(
        codec_of(User).decode(users[0]),
        operator=credential is not None and credential.role == "operator",
        locked=credential is not None and credential.locked_at is not None,
        factor=credential is not None and credential.totp_secret is not None,
    )


async def open_among(database: Database, user_ids: Iterable[ObjectId]) -> set[ObjectId]:
    """Those of these users whose account is neither closed nor locked. One command."""
    rows = await database.users.aggregate(
        [
            {"$match": {"_id": {"$in": list(user_ids)}, "deletedAt": None}},
            {"$project": {"_id": 1}},
            {"$lookup": {"from": CREDENTIALS.name, "localField": "_id", "foreignField": "_id", "as": "credential"}},
            {"$match": {"credential.lockedAt": {"$not": {"$type": "date"}}}},
            {"$project": {"_id": 1}},
        ]
    )
    return {row["_id"] for row in rows}


def tags(user_id: ObjectId) -> Sequence[Tag]:
    return (USERS.name, user_id), (CREDENTIALS.name, user_id)


def forget(database: Database, user_id: ObjectId) -> None:
    """Evict this process's cached entries that depend on a user:
    sessions and keys (see `Database.forget`)."""
    for collection, name in tags(user_id):
        database.forget(collection, name)
