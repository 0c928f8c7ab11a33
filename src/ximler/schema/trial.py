"""`trials`: payment methods that a free trial was taken with. Private to billing."""

import hashlib
from datetime import datetime

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, ShardKey

__all__ = ["TRIALS", "Trial", "trial_id"]


def trial_id(fingerprint: str) -> str:
    """A digest of the payment method's fingerprint. The document names no user and outlives the account."""
    return hashlib.sha256(f"trial:{fingerprint}".encode()).hexdigest()


class Trial(Document, kw_only=True):
    """The uniqueness of `_id` limits a payment method to one trial. Trials at Stripe have a second document,
    of payment method and subscription: that trial was seen.
    """

    id: str = field(name="_id")
    created_at: datetime = AT_WRITE


TRIALS = Collection(
    name="trials",
    document=Trial,
    purpose="Payment methods that a free trial was taken with: one trial each, under any e-mail address.",
    owner="billing",
    shard_key=ShardKey((("_id", "hashed"),), "inserted by `_id`"),
)
