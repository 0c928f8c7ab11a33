"""`sandboxobjects`: the state of the sandbox, the payment provider of development. Private to billing."""

from datetime import datetime
from typing import Literal

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, Kept, ShardKey, ascending

__all__ = ["SANDBOX_OBJECTS", "SandboxKind", "SandboxObject"]

SandboxKind = Literal["customer", "session", "intent", "refund", "dispute", "detached"]


class SandboxObject(Document, kw_only=True):
    """`due_at` is when a pending intent or refund succeeds or fails by itself."""

    id: Kept[str] = field(name="_id")
    kind: Kept[SandboxKind]
    customer_id: Kept[str | None] = None
    status: Kept[str] = "CREATED"
    # Of a session
    title: Internal[str | None] = None
    return_url: Internal[str | None] = None
    expires_at: Kept[datetime | None] = None
    method_id: Kept[str | None] = None
    # Of an intent, a refund and a dispute
    amount_minor: Kept[int] = 0
    refunded_minor: Kept[int] = 0
    currency: Kept[str | None] = None
    reference: Kept[str | None] = None  # the charge's id, or the refund's
    intent_id: Kept[str | None] = None
    failure: Kept[str | None] = None
    hard: Kept[bool] = False
    outcome: Kept[str | None] = None
    due_at: Kept[datetime | None] = None
    created_at: Kept[datetime] = AT_WRITE


SANDBOX_OBJECTS = Collection(
    name="sandboxobjects",
    document=SandboxObject,
    purpose="State of the sandbox, the payment provider of development.",
    owner="billing",
    indexes=(
        ascending("dueAt", ours=True, why="pending intents and refunds whose time has come"),
        ascending("reference", ours=True, why="intents of a charge, to verify that one was paid"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "read by `_id`; development only"),
)
