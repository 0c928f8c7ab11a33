"""Security notices by mail. Preferences do not suppress them, because they report changes that a thief would
make.
"""

from typing import Any

from bson import ObjectId
from msgspec import field

from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.notifications.email import Mailer, compose, greeting
from ximler.schema.document import Document, Mixed

__all__ = ["Notice", "notify", "send"]

# Notice → (subject, text). In braces: details of the notice.
_NOTICES = {
    "api_key_created": (
        "A new API key was created",
        "An API key that ends in {hint} was created for your account. If this was not you, revoke it as well.",
    ),
    "factor_enabled": (
        "A second factor protects your account",
        (
            "A second factor was added to your account. From now on, signing in requires a code of the authenticator app. "
            "All other sessions have ended."
        ),
    ),
    "factor_disabled": (
        "Your second factor was removed",
        "The second factor of your account was removed. Signing in requires only the password again.",
    ),
    "recovery_codes_made": (
        "You have new recovery codes",
        "New recovery codes were generated for your account. The previous ones no longer work.",
    ),
    "recovery_code_used": (
        "A recovery code was used",
        "Someone, probably you, signed in with a recovery code of your account. Codes left: {left}.",
    ),
    "new_sign_in": (
        "A new sign-in to your account",
        (
            "Someone, probably you, signed in to your account from {origin}, for the first time. If this was not you, end "
            "all other sessions as well."
        ),
    ),
    "wrong_codes": (
        "Wrong codes were tried for your account",
        "Someone who knows your password has tried {count} wrong codes of your second factor. They were not signed in.",
    ),
    "email_requested": (
        "Another address for your account",
        (
            "Someone, probably you, asked to use {address} for your account instead of this address. The change takes effect "
            "when the link that was sent there is opened and the password entered."
        ),
    ),
    "email_changed": (
        "The address of your account was changed",
        (
            "Your account now uses {address}, and no longer this address. If this was not you, contact the operators of this "
            "site at once."
        ),
    ),
}


_TOO_LATE = "email_changed"  # a reset link would go to the new address


async def notify(
    transaction: Database,
    user_id: ObjectId,
    notice: str,
    *,
    to: str | None = None,
    once: str | None = None,
    **details: Any,
) -> None:
    """Enqueue a notice in the transaction of the event that it reports, to the user's address or to `to`.

    With `once`, a second notice of the same name is not sent. One command, two with `once`.
    """
    payload = Notice(user_id=user_id, notice=notice, details=details, to=to)
    await send.enqueue(transaction, payload, dedupe_key=f"{notice}:{user_id}:{once}" if once else None)


class Notice(Document, kw_only=True):
    user_id: ObjectId
    notice: str
    details: Mixed = field(default_factory=dict[str, Any])
    to: str | None = None


@outbox.job("accounts.send_notice", Notice)
async def send(payload: Notice, *, job: outbox.Job, database: Database, settings: Settings, mailer: Mailer) -> None:
    """The job behind `notify`. A repeat sends the same message."""
    user = await database.users.find_one({"_id": payload.user_id})
    if user is None:
        return
    subject, what = _NOTICES[payload.notice]
    message = compose(
        "notice",
        settings,
        to=payload.to or user.email,
        subject=subject,
        key=f"notice:{job.id}",
        greeting=greeting(user),
        what=what.format(**payload.details),
        link=None if payload.notice == _TOO_LATE else f"{settings.base_url}/reset",
        label="Choose a new password",
    )
    await mailer.send(message)
