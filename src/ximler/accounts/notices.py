"""Mail about an account's security. Preferences do not stop it: it tells of what a thief would do."""

from typing import Any

from bson import ObjectId

from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.notifications.email import Mailer, compose, greeting

__all__ = ["SEND", "send", "tell"]

SEND = "accounts.send_notice"

# Notice → (subject, what happened). In braces: details of the notice.
_NOTICES = {
    "factor_enabled": (
        "A second factor protects your account",
        (
            "a second factor was added to your account: from now on, signing in takes a code of the authenticator app too. "
            "Everybody else who was signed in is signed out."
        ),
    ),
    "factor_disabled": (
        "Your second factor was removed",
        "the second factor of your account was removed: the password alone signs in again.",
    ),
    "recovery_codes_made": (
        "You have new recovery codes",
        "new recovery codes were made for your account; the ones before are worth nothing any more.",
    ),
    "recovery_code_used": (
        "A recovery code was used",
        "somebody, probably you, proved who they are with a recovery code of your account. Codes that are left: {left}.",
    ),
    "wrong_codes": (
        "Somebody is trying codes for your account",
        "somebody who knows your password has tried {count} wrong codes of your second factor. They did not get in.",
    ),
    "email_requested": (
        "Another address for your account",
        (
            "somebody, probably you, asked to use {address} for your account instead of this address. That happens once they "
            "have opened the link that we sent there, and given the password."
        ),
    ),
    "email_changed": (
        "The address of your account was changed",
        (
            "your account now belongs to {address}, and this address has none any more. If it was not you, tell the people "
            "who run this site at once."
        ),
    ),
}


_TOO_LATE = "email_changed"  # a reset link would go to the new address


async def tell(
    transaction: Database,
    user_id: ObjectId,
    notice: str,
    *,
    to: str | None = None,
    once: str | None = None,
    **details: Any,
) -> None:
    """Have a notice mailed, in the transaction of what it tells of: to the user's address, or `to` the one
    they had.

    With `once`, a second one of the same name is not sent. One command, with `once` two.
    """
    payload = {"userId": user_id, "notice": notice, "details": details} | ({"to": to} if to else {})
    await outbox.enqueue(transaction, SEND, payload, dedupe_key=f"{notice}:{user_id}:{once}" if once else None)


async def send(
    database: Database, settings: Settings, mailer: Mailer, *, job_id: ObjectId, payload: dict[str, Any]
) -> None:
    """The job behind `tell`. Sent again it is the same message."""
    user = await database.users.find_one({"_id": payload["userId"]})
    if user is None:
        return
    subject, what = _NOTICES[payload["notice"]]
    message = compose(
        "notice",
        settings,
        to=payload.get("to") or user.email,
        subject=subject,
        key=f"notice:{job_id}",
        greeting=greeting(user),
        what=what.format(**payload["details"]),
        link=None if payload["notice"] == _TOO_LATE else f"{settings.base_url}/reset",
        label="Choose a new password",
    )
    await mailer.send(message)
