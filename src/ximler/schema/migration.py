"""`migrations`: the progress of each data migration. Private to database."""

from datetime import datetime
from typing import Any

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Mixed, ShardKey

__all__ = ["MIGRATIONS", "MigrationState"]


class MigrationState(Document, kw_only=True):
    """`place` is the start of the next batch; `fence` is the lease's fencing number at the last batch."""

    id: str = field(name="_id")
    fence: int
    place: Mixed = field(default_factory=dict[str, Any])
    changed: int = 0
    finished_at: datetime | None = None
    created_at: datetime = AT_WRITE
    updated_at: datetime = AT_WRITE


MIGRATIONS = Collection(
    name="migrations",
    document=MigrationState,
    purpose="The progress of each data migration.",
    owner="database",
    shard_key=ShardKey((), "a handful of documents"),
)
