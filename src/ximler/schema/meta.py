"""`meta`: the schema's version. Private to database."""

from datetime import datetime

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, ShardKey

__all__ = ["META", "SCHEMA_VERSION", "Meta"]

# The version of the last migration. A database with a larger one was migrated by a newer Ximler.
SCHEMA_VERSION = 6


class Meta(Document, kw_only=True):
    """`_id: "schema"`. `created_here`: the database had no collections when `ximler db init` first ran."""

    id: str = field(name="_id")
    version: int
    fingerprint: str | None = None  # of collections, validators and indexes, as they were last made
    release: str = "0"  # of Ximler that made them: an older release does not take them back
    created_here: bool = False
    seeded: list[str] = field(default_factory=list)  # seeds that were inserted: "plans:free"
    created_at: datetime = AT_WRITE
    updated_at: datetime = AT_WRITE


META = Collection(
    name="meta",
    document=Meta,
    purpose="The schema's version.",
    owner="database",
    shard_key=ShardKey((), "one document"),
)
