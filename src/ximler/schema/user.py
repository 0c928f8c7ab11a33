"""`users`: a person's account."""

from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import field

from ximler.schema.document import (
    Collection,
    Document,
    Internal,
    Kept,
    Lowercase,
    ShardKey,
    Stamped,
    Theirs,
    Trimmed,
    ascending,
    erased_as,
)

__all__ = ["USERS", "EmailNotifications", "NotificationSettings", "PushNotifications", "User"]


class EmailNotifications(Document, kw_only=True):
    product_updates: bool = True
    billing_alerts: bool = True
    security_alerts: bool = True


class PushNotifications(Document, kw_only=True):
    enabled: bool = False
    product_updates: bool = True


class NotificationSettings(Document, kw_only=True):
    email: EmailNotifications = field(default_factory=EmailNotifications)
    push: PushNotifications = field(default_factory=PushNotifications)


class User(Stamped, kw_only=True):
    FORGIVEN: ClassVar[tuple[str, ...]] = (
        "avatar", "emailVerified", "emailVerificationToken", "passwordResetToken", "passwordResetExpires", "lastLogin",
        "stripeCustomerId", "notificationSettings", "createdAt", "updatedAt",
    )  # fmt: skip

    name: Annotated[Trimmed, erased_as("Erased")]
    email: Theirs[Lowercase]
    password: Kept[str]  # an Argon2id hash; hashes of other forms are rejected
    avatar: Theirs[str | None] = None
    email_verified: Annotated[bool, erased_as(False)] = False
    email_verification_token: Internal[str | None] = None
    password_reset_token: Internal[str | None] = None
    password_reset_expires: Internal[datetime | None] = None
    last_login: Theirs[datetime | None] = None
    stripe_customer_id: Theirs[str | None] = None
    notification_settings: Theirs[NotificationSettings] = field(default_factory=NotificationSettings)
    deleted_at: Kept[datetime | None] = None
    # Our own: equals `deletedAt` if the owner closed the account. Otherwise the owner cannot reopen it.
    closed_at: Internal[datetime | None] = None

    @property
    def can_reopen(self) -> bool:
        return self.deleted_at is not None and self.closed_at == self.deleted_at

    def __repr__(self) -> str:
        """Without hashes and tokens, for shells, logs and tracebacks."""
        return f"User(id={self.id!r}, email={self.email!r}, name={self.name!r})"


USERS = Collection(
    name="users",
    document=User,
    purpose="A person's account.",
    owner="accounts",
    indexes=(
        ascending("email", unique=True, why="sign-in; one account per address"),
        ascending("emailVerificationToken", why="confirmation links"),
        ascending("passwordResetToken", why="reset links"),
        ascending("deletedAt", why="accounts to anonymise"),
        ascending("stripeCustomerId", why="webhooks find their user"),
        ascending("-createdAt", "-_id", ours=True, why="operators' list, newest first"),
        ascending("name", ours=True, why="operators' search by name"),
    ),
    shard_key=ShardKey((), "found by id, address and token alike, and an address is unique: small, kept on one shard"),
)
