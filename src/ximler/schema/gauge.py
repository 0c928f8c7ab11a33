"""`gauges`: the number of projects and stored bytes of each user. Private to metering."""

from datetime import datetime
from typing import Any

from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, Mixed, ShardKey, UserId, ascending

__all__ = ["GAUGES", "Gauge"]


class Gauge(Document, kw_only=True):
    """Projects and bytes in one document, so that one guarded update reserves both. The limits are the
    plan's.

    `hours` (`h` and the hours since 1970 → `projects` and `storage`, signed) are changes that the ledger may
    lack, `steps` how many changes they are, and `number` the last version that the ledger has in full (see
    metering.ledger.changes). Every change of the counts changes `hours` by as much.
    """

    id: UserId = field(name="_id")  # the user's
    projects: Internal[int] = 0
    storage_bytes: Internal[int] = 0
    hours: Internal[Mixed] = field(default_factory=dict[str, Any])
    steps: Internal[int] = 0
    number: Internal[int] = 0
    sent: Internal[Mixed] = field(
        default_factory=dict[str, Any]
    )  # changes that an earlier version of Ximler added partly
    due: Internal[datetime | None] = None  # when it was last changed; None: the ledger is up to date
    created_at: Internal[datetime] = AT_WRITE
    updated_at: Internal[datetime] = AT_WRITE


GAUGES = Collection(
    name="gauges",
    document=Gauge,
    purpose="The number of projects and stored bytes of each user.",
    owner="metering",
    indexes=(ascending("due", ours=True, why="gauges with changes that the ledger lacks"),),
    shard_key=ShardKey((("_id", "hashed"),), "read and written by user"),
)
