"""`credentials`: role, lock, second factor and usual origins of each user. Private to accounts."""

from datetime import datetime
from typing import Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, ShardKey, Theirs, UserId

__all__ = ["CREDENTIALS", "Credential", "Role"]

Role = Literal["operator"]


class Credential(Document, kw_only=True):
    """One per user, created on demand. The specification's `users` has no fields for these."""

    id: UserId = field(name="_id")  # the user's
    role: Theirs[Role | None] = None
    locked_at: Internal[datetime | None] = None
    lock_reason: Internal[str | None] = None
    totp_secret: Internal[bytes | None] = None  # encrypted with a key derived from the secret key, once confirmed
    totp_confirmed_at: Theirs[datetime | None] = None
    totp_last_step: Internal[int | None] = None  # RFC 6238, 5.2: a code is accepted once
    totp_pending: Internal[bytes | None] = None  # likewise; an unconfirmed secret, not in force
    totp_pending_at: Internal[datetime | None] = None
    factor_attempts: Internal[list[int]] = field(
        default_factory=list
    )  # when the latest few codes were tried (ms since 1970)
    recovery_codes: Internal[list[str]] = field(default_factory=list)  # hashes of the unused codes
    places: Theirs[list[str]] = field(default_factory=list)  # of the latest sign-ins, from the operator's GeoIP file
    browsers: Theirs[list[str]] = field(default_factory=list)  # likewise, without versions
    reported: Internal[list[int]] = field(default_factory=list)  # when a new place or browser was (ms since 1970)
    devices: Internal[list[ObjectId]] = field(
        default_factory=list
    )  # ids of the tokens of known devices that have not shown them yet, the oldest first
    returned: Internal[list[ObjectId]] = field(default_factory=list)  # likewise, of those that have
    created_at: Theirs[datetime] = AT_WRITE
    updated_at: Theirs[datetime] = AT_WRITE

    def __repr__(self) -> str:
        return f"Credential(id={self.id!r}, role={self.role!r})"


CREDENTIALS = Collection(
    name="credentials",
    document=Credential,
    purpose="Role, lock, second factor and usual origins of a user.",
    owner="accounts",
    shard_key=ShardKey((("_id", "hashed"),), "read and written by user"),
)
