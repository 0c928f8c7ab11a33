"""`migrations`: how far each migration of the data has come. Private to database."""

from datetime import datetime
from typing import Any

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Mixed, ShardKey

__all__ = ["MIGRATIONS", "MigrationState"]


class MigrationState(Document, kw_only=True):
    """`place` is where the next batch begins; `fence` is that of the lease under which the last batch was written."""

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
    purpose="How far each migration of the data has come.",
    owner="database",
    shard_key=ShardKey((), "a handful of documents"),
)
