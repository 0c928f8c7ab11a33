"""`registrations`: registrations pending confirmation of the e-mail address. Private to accounts."""

from datetime import datetime

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Index, Lowercase, ShardKey, Trimmed

__all__ = ["REGISTRATIONS", "Registration"]


class Registration(Document, kw_only=True):
    """The link's token is derived from the id and the secret key, and is not stored. Each registration has
    its own password, so that the owner of the mailbox decides which of several becomes the account.
    """

    id: ObjectId = field(name="_id", default_factory=ObjectId)
    name: Trimmed
    email: Lowercase
    password: str
    attempts: int = 0  # passwords tried with the link
    created_at: datetime = AT_WRITE
    expires_at: datetime
    network: str = ""  # a keyed hash of the network that asked: see `accounts.unconfirmed`


REGISTRATIONS = Collection(
    name="registrations",
    document=Registration,
    purpose="Registrations pending confirmation of the e-mail address.",
    owner="accounts",
    indexes=(Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB when they expire"),),
    shard_key=ShardKey((("_id", "hashed"),), "written and found by id"),
)
