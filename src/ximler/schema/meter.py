"""`meters`: the processes that hold quota leases, and how long each
heartbeat is valid. Private to metering."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import Collection, Document, Index, ShardKey

__all__ = ["METERS", "MeterProcess"]


class MeterProcess(Document, kw_only=True):
    """One per process. A process without a valid heartbeat loses its leases; renewing a removed document
    inserts it again.
    """

    id: str = field(name="_id")  # the beginning of the ids of its leases
    expires_at: datetime  # by the server's clock


METERS = Collection(
    name="meters",
    document=MeterProcess,
    purpose="Heartbeats of the processes that hold quota leases.",
    owner="metering",
    indexes=(
        Index(
            keys=(("expiresAt", 1),), ttl_seconds=3600, ours=True, why="removed by MongoDB an hour after they expire"
        ),
    ),
    shard_key=ShardKey((), "one document per process"),
)
