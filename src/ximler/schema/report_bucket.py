"""`reportbuckets`: the lines of a report for a day, a week or a month. Private to analytics."""

from datetime import datetime
from typing import Any, Literal

from msgspec import field

from ximler.schema.document import Collection, Document, Index, Mixed, ShardKey, ascending

__all__ = ["REPORT_BUCKETS", "ReportBucket"]


class ReportBucket(Document, kw_only=True):
    """A period's lines: "cash:DAY:2026-11-03". They are always computed and replaced as a whole.

    `version` grows whenever a document of the period may have changed. A bucket that is `dirty` is computed
    again, and `computed_at` is absent until it is for the first time.
    """

    id: str = field(name="_id")
    report: str
    by: Literal["DAY", "WEEK", "MONTH"]
    start: datetime
    lines: Mixed = field(default_factory=list[Any])
    version: int = 0
    dirty: bool | None = None
    computed_at: datetime | None = None


REPORT_BUCKETS = Collection(
    name="reportbuckets",
    document=ReportBucket,
    purpose="Cash and usage by day, week and month, computed from payments, refunds and the usage ledger.",
    owner="analytics",
    indexes=(
        ascending("report", "by", "start", ours=True, why="a report's periods"),
        Index(keys=(("dirty", 1),), partial={"dirty": True}, ours=True, why="periods that are computed again"),
    ),
    shard_key=ShardKey((("_id", "hashed"),), "a few thousand small documents"),
)
