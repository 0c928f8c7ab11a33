"""A user's inbox: notifications and read marks. Owns `notifications`.

A notification is written in the transaction of the change it reports (`notify`), or by a job that this
transaction enqueues (`announce`). All appear in the inbox. `notificationSettings.email` decides whether one
is mailed too, and is checked again when the mail is sent.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.core.errors import NotFound
from ximler.core.ids import Position
from ximler.core.settings import Settings
from ximler.database import Database, outbox
from ximler.database.collection import Page
from ximler.database.failures import DocumentExists
from ximler.database.topics import Topic
from ximler.notifications.email import Mailer, compose, greeting
from ximler.schema.document import Document, Mixed
from ximler.schema.notification import NOTIFICATIONS, Notification, NotificationType
from ximler.schema.user import User

__all__ = [
    "ADDED",
    "UNSUBSCRIBE",
    "Link",
    "Notified",
    "Sign",
    "announce",
    "get",
    "mark_all_read",
    "mark_read",
    "notify",
    "page",
    "send",
    "unread_counts",
]

UNSUBSCRIBE = "unsubscribe"  # purpose of the token in unsubscribe links

ADDED = Topic("notifications", {NOTIFICATIONS.name: lambda change: (change.document or {}).get("userId")})
"""New notifications, by the user's id."""

Sign = Callable[[str, ObjectId], str]


class Link(NamedTuple):
    """A page of this site: `Link("/invoices/…", "Open the invoice")`."""

    path: str
    label: str


async def notify(
    transaction: Database,
    user: User,
    type: NotificationType,  # noqa: A002 (the field's own name)
    title: str,
    message: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    link: Link | None = None,
    occasion: ObjectId | None = None,
) -> Notification:
    """Add a notification to the user's inbox, and enqueue a mail if the user wants it. One command, two with
    a mail.

    `link` becomes a button of the mail, and `link` in the metadata. `occasion` is the id of the calling job,
    if any, and makes the call idempotent (one more command). SYSTEM notifications are never mailed, because
    there is no preference for them.
    """
    if occasion and (sent := await transaction.notifications.find_one({"_id": occasion, "userId": user.id})):
        return sent
    notification = await transaction.notifications.insert(
        Notification(
            id=occasion or ObjectId(),
            user_id=user.id,
            type=type,
            title=_one_line(title),
            message=message,
            metadata=_with_link(metadata, link),
        )
    )
    if _wants_mail(user, type):
        await send.enqueue(transaction, Notified(notification_id=notification.id, user_id=user.id))
    return notification


class Notified(Document, kw_only=True):
    notification_id: ObjectId
    user_id: ObjectId


@outbox.job("notifications.send", Notified)
async def send(payload: Notified, *, database: Database, settings: Settings, mailer: Mailer, sign: Sign) -> None:
    """The job behind `notify`. Sends nothing to users who left or changed their preference since.

    Product mail has one-click unsubscribe (RFC 8058); `sign` makes the link's token.
    """
    user = await database.users.find_one({"_id": payload.user_id})
    notification = await database.notifications.find_one({"_id": payload.notification_id, "userId": payload.user_id})
    if user is not None and notification is not None:
        await _mail(user, notification, settings, mailer, sign)


class Announced(Document, kw_only=True):
    user_id: ObjectId
    type: NotificationType
    title: str
    message: str
    metadata: Mixed


async def announce(
    transaction: Database,
    user_id: ObjectId,
    type: NotificationType,  # noqa: A002 (the field's own name)
    title: str,
    message: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    link: Link | None = None,
) -> None:
    """As `notify`, by a job, which reads the user: always one command."""
    announced = Announced(
        user_id=user_id, type=type, title=_one_line(title), message=message, metadata=_with_link(metadata, link)
    )
    await _announce.enqueue(transaction, announced)


@outbox.job("notifications.announce", Announced)
async def _announce(
    payload: Announced, *, job: outbox.Job, database: Database, settings: Settings, mailer: Mailer, sign: Sign
) -> None:
    """Add the notification, with the id and the time of the job, and mail it. Nothing for users who left."""
    user = await database.users.find_one({"_id": payload.user_id})
    if user is None:
        return
    notification = Notification(
        id=job.id,
        created_at=job.created_at,
        user_id=user.id,
        type=payload.type,
        title=payload.title,
        message=payload.message,
        metadata=payload.metadata,
    )
    with suppress(DocumentExists):  # the job is repeated
        await database.notifications.insert(notification)
    await _mail(user, notification, settings, mailer, sign)


async def _mail(user: User, notification: Notification, settings: Settings, mailer: Mailer, sign: Sign) -> None:
    if not _wants_mail(user, notification.type):
        return
    product = notification.type == "PRODUCT"
    link = None if product else notification.metadata.get("link")
    if product:
        link = {"path": f"/unsubscribe?token={sign(UNSUBSCRIBE, user.id)}", "label": "Unsubscribe"}
    url = f"{settings.base_url}{link['path']}" if link else None
    mail = compose(
        "notification",
        settings,
        to=user.email,
        subject=notification.title,
        key=f"notification:{notification.id}",
        link=url,
        label=link["label"] if link else "",
        product=product,
        greeting=greeting(user),
        text=notification.message,
    )
    if product:
        mail["List-Unsubscribe"] = f"<{url}>"
        mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    await mailer.send(mail)


async def page(
    database: Database, actor: Actor, *, unread: bool = False, first: int = 20, after: Position | None = None
) -> Page[Notification]:
    """The actor's notifications, newest first. One command."""
    where = {"userId": actor.require_user()} | ({"readAt": None} if unread else {})
    return await database.notifications.page(where, first=first, after=after)


async def get(database: Database, actor: Actor, notification_id: ObjectId) -> Notification:
    """One of the actor's notifications. Raises NotFound."""
    found = await database.notifications.find_one({"_id": notification_id, "userId": actor.require_user()})
    if found is None:
        raise NotFound("No such notification")
    return found


async def unread_counts(database: Database, actor: Actor, user_ids: Iterable[ObjectId]) -> dict[ObjectId, int]:
    """The number of unread notifications per user, with one command. Raises NotFound for other users, except
    to operators.
    """
    ids = set(user_ids)
    if ids - {actor.require_user()} and actor.kind != "operator":
        raise NotFound("No such user")
    found = await database.notifications.aggregate(
        [
            {"$match": {"userId": {"$in": list(ids)}, "readAt": None}},
            {"$group": {"_id": "$userId", "count": {"$sum": 1}}},
        ]
    )
    return dict.fromkeys(ids, 0) | {row["_id"]: row["count"] for row in found}


async def mark_read(database: Database, actor: Actor, notification_id: ObjectId) -> Notification:
    """Mark a notification as read. Idempotent. Raises NotFound. One command, two if it was read before."""
    mine = {"_id": notification_id, "userId": actor.require_user()}
    now = database.clock.now()
    read = await database.notifications.find_and_patch({**mine, "readAt": None}, {"$set": {"readAt": now}})
    read = read or await database.notifications.find_one(mine)
    if read is None:
        raise NotFound("No such notification")
    return read


async def mark_all_read(database: Database, actor: Actor) -> int:
    """Mark all as read; returns how many were unread. A notification that arrives concurrently may stay
    unread.
    """
    unread = {"userId": actor.require_user(), "readAt": None}
    return await database.notifications.patch_many(unread, {"$set": {"readAt": database.clock.now()}})


def _one_line(title: str) -> str:
    """For a mail's subject."""
    return " ".join(title.split())


def _with_link(metadata: Mapping[str, Any] | None, link: Link | None) -> dict[str, Any]:
    return {**(metadata or {}), **({"link": link._asdict()} if link else {})}


def _wants_mail(user: User, kind: NotificationType) -> bool:
    wants = user.notification_settings.email
    match kind:
        case "BILLING":
            return wants.billing_alerts
        case "SECURITY":
            return wants.security_alerts
        case "PRODUCT":
            return wants.product_updates
        case "SYSTEM":
            return False
