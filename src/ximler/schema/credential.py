"""`credentials`: what beside a password decides who may sign in, and as what. Private to accounts."""

from datetime import datetime
from typing import Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, ShardKey

__all__ = ["CREDENTIALS", "Credential", "Role"]

Role = Literal["operator"]


class Credential(Document, kw_only=True):
    """One a user, made when there is something to say. The specification's `users` has no place for it."""

    id: ObjectId = field(name="_id")  # the user's
    role: Role | None = None
    locked_at: datetime | None = None
    lock_reason: str | None = None
    totp_secret: bytes | None = None  # encrypted with a key derived from the secret key; here once it was proved
    totp_confirmed_at: datetime | None = None
    totp_last_step: int | None = None  # RFC 6238, 5.2: a code is taken once
    totp_pending: bytes | None = None  # a secret, likewise, that was shown and not proved yet: it protects nobody
    totp_pending_at: datetime | None = None
    factor_attempts: list[int] = field(default_factory=list)  # when the latest few codes were tried (ms since 1970)
    recovery_codes: list[str] = field(default_factory=list)  # hashes of those that are left
    created_at: datetime = AT_WRITE
    updated_at: datetime = AT_WRITE

    def __repr__(self) -> str:
        return f"Credential(id={self.id!r}, role={self.role!r})"


CREDENTIALS = Collection(
    name="credentials",
    document=Credential,
    purpose="Role, lock and second factor of a user.",
    owner="accounts",
    shard_key=ShardKey((("_id", "hashed"),), "read and written by user"),
)
