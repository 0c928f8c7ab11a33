"""`leases`: the holders of work that is limited to one process at a time. Private to database."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, ShardKey

__all__ = ["LEASES", "Lease"]


class Lease(Document, kw_only=True):
    """`fence` grows by one with each new holder, so a document is never removed. `writes` counts guarded
    transactions.
    """

    id: str = field(name="_id")
    holder: str
    until: datetime  # by the server's clock
    fence: int
    before: datetime | None = None  # `until` of the lease before
    writes: int = 0


LEASES = Collection(
    name="leases",
    document=Lease,
    purpose="Holders of work that is limited to one process at a time: settlement, sealing, migrations.",
    owner="database",
    shard_key=ShardKey((), "a handful of documents"),
)
