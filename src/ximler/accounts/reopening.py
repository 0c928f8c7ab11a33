"""Closed accounts that can still be reopened.

Only a sign-in with the right password reveals that an account is closed. Otherwise it does not exist.
"""

from datetime import datetime, timedelta
from typing import Any

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.clock import EPOCH, rfc3339
from ximler.core.errors import Unauthenticated
from ximler.database import Database
from ximler.notifications import inbox
from ximler.schema.user import User

__all__ = ["GRACE", "THEIRS", "AccountClosed", "day", "erased_at", "refusal", "reopen"]

GRACE = timedelta(days=30)


# Accounts that are open or were closed by their owner: a sign-in may open them.
THEIRS: dict[str, Any] = {"$or": [{"deletedAt": None}, {"closedAt": {"$gt": EPOCH}}]}


class AccountClosed(Unauthenticated):
    code = "ACCOUNT_CLOSED"


def erased_at(closed_at: datetime) -> datetime:
    """When an account closed at that time is anonymised."""
    return closed_at + GRACE


def day(moment: datetime) -> str:
    """A date for people: `24 December 2026`, UTC."""
    return f"{moment.day} {moment:%B %Y}"


def refusal(closed: User) -> AccountClosed:
    """The error after a sign-in with the right password."""
    assert closed.closed_at is not None  # noqa: S101 (for the type checker)
    last = erased_at(closed.closed_at)
    return AccountClosed(
        f"This account is closed, and everything in it will be erased after {day(last)}: reopen it to sign in",
        fields={"account": f"can be reopened until {rfc3339(last)}"},
    )


async def reopen(transaction: Database, actor: Actor, user: User) -> bool:
    """Reopen a closed account, in the transaction of its owner's sign-in. False if it was erased or reopened
    since.
    """
    closed = {"_id": user.id, "password": user.password, "deletedAt": user.deleted_at}
    if not await transaction.users.patch(closed, {"$unset": {"deletedAt": "", "closedAt": ""}}, deleted=True):
        return False
    await records.write(
        transaction,
        actor,
        Action.ACCOUNT_REOPENED,
        resource="users",
        resource_id=user.id,
        user_id=user.id,
        before={"deletedAt": user.deleted_at},
        after={"deletedAt": None},
    )
    title = "Your account is open again"
    await inbox.notify(
        transaction,
        user,
        "SECURITY",
        title,
        "Everything is where it was. If it was not you, choose a new password at once.",
    )
    return True
