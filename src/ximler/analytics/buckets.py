"""Rollups of reports about documents that change:
a bucket of lines for each day, week or month. Owns `reportbuckets`.

A bucket is computed when a report first asks for it, and is replaced as a whole. Documents of a period that
ended two days ago are expected to stay; where one changes, its bucket is marked and computed again. Younger
periods are computed by each report (`late_s` is 0), or by the job and by reports that find them older than
`late_s`. Buckets are stored only if they have not been marked since their documents were read, so any number
of processes may compute them, and be killed, at any moment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from itertools import dropwhile
from typing import Any

import msgspec

from ximler.analytics.spans import By, first_day, following, midnight, period_end
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.report_bucket import REPORT_BUCKETS, ReportBucket

__all__ = ["Line", "Report", "again", "is_settled", "mark", "mark_since", "read"]

_SETTLED = timedelta(days=2)
_AT_ONCE = {"DAY": 31, "WEEK": 5, "MONTH": 1}  # buckets of one command, which would else time out

Line = dict[str, Any]
Lines = dict[date, list[Line]]
Period = tuple[date, date]


class Report(msgspec.Struct, frozen=True):
    """A report that has buckets. `compute` returns the lines of each period of a range by its first day.

    `same` says whether two computations agree: lines that do are not replaced. `late_s` bounds the age of a
    bucket whose documents still change; 0 computes it for each report.
    """

    name: str
    sizes: tuple[By, ...]
    compute: Callable[[Database, date, date, By], Awaitable[Lines]]
    same: Callable[[list[Line], list[Line]], bool]
    late_s: float


async def read(database: Database, report: Report, periods: Sequence[Period], by: By) -> Lines:
    """The lines of each period, by its first day. One command where all buckets are known.

    Periods that the range cuts are computed from their documents; one that ends in the future is whole.
    Missing ones are stored a month at a time, latest first, so an aborted report resumes where it stopped.
    """
    now = database.clock.now()
    where = {
        "report": report.name,
        "by": by,
        "start": {"$gte": midnight(periods[0][0]), "$lt": midnight(periods[-1][1])},
    }
    stored = {bucket.start.date(): bucket for bucket in await database[REPORT_BUCKETS].find(where)}
    found: Lines = {}
    missing: list[Period] = []
    for start, end in periods:
        whole = start == first_day(start, by) and (end == period_end(start, by) or midnight(end) > now)
        bucket = stored.get(start)
        if whole and bucket is not None and _usable(report, bucket, now):
            found[start] = bucket.lines
        else:
            missing.append((start, period_end(start, by) if whole else end))
    for run in _runs(missing):
        rest, size = run, _AT_ONCE[by]
        while rest:
            part = rest[-size:]
            lines = await report.compute(database, part[0][0], part[-1][1], by)
            # Before the first document a few commands suffice.
            size = _AT_ONCE[by] if any(lines.values()) else 2 * size
            found |= {start: lines.get(start, []) for start, _ in part}
            kept = [start for start, end in part if start == first_day(start, by) and end == period_end(start, by)]
            known = [stored.get(start) or _fresh(report, by, start) for start in kept]
            rest = rest[: len(rest) - len(part)]
            await _store(database, report, known, lines, now, first=not rest)
    return found


def is_settled(database: Database, start: date, end: date) -> bool:
    """Whether a period is a whole month whose documents are expected to stay."""
    return start.day == 1 and end == following(start) and midnight(end) + _SETTLED <= database.clock.now()


async def mark(database: Database, report: Report, days: Iterable[date]) -> None:
    """Have the buckets of these days computed again."""
    places = {(by, first_day(day, by)) for day in days for by in report.sizes}
    dirty: Any = {"$inc": {"version": 1}, "$set": {"dirty": True}}
    fresh = [_fresh(report, by, start) for by, start in places]
    if fresh:
        await database[REPORT_BUCKETS].upsert_each([({"_id": each.id}, dirty, each) for each in fresh])


async def mark_since(database: Database, report: Report, day: date) -> None:
    """Have the known buckets from a day on computed again, because changes may have been missed."""
    dirty: Any = {"$inc": {"version": 1}, "$set": {"dirty": True}}
    for by in report.sizes:
        where = {"report": report.name, "by": by, "start": {"$gte": midnight(first_day(day, by))}}
        await database[REPORT_BUCKETS].patch_many(where, dirty)


async def again(
    database: Database, report: Report, where: Mapping[str, Any], *, store: bool = True, at_once: int = 1
) -> list[str]:
    """Compute the known buckets that match anew;
    the ids of those that differ, which are replaced with `store`. `at_once` aggregations run side by side."""
    found: list[str] = []
    places = await database[REPORT_BUCKETS].find({"report": report.name, **where}, sort=[("start", 1)])
    of_size: dict[By, dict[date, ReportBucket]] = {by: {} for by in report.sizes}
    for each in places:
        if each.by in of_size:
            of_size[each.by][each.start.date()] = each
    runs = iter(
        [
            (by, [known[start] for start, _ in run])
            for by, known in of_size.items()
            for run in _runs([(start, period_end(start, by)) for start in known], most=_AT_ONCE[by])
        ]
    )

    async def work() -> None:
        for by, of_run in runs:
            now = database.clock.now()
            last = period_end(of_run[-1].start.date(), by)
            lines = await report.compute(database, of_run[0].start.date(), last, by)
            found.extend(
                each.id
                for each in of_run
                if each.computed_at is not None and not report.same(each.lines, lines.get(each.start.date(), []))
            )
            if store:
                await _store(database, report, of_run, lines, now)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return found


async def _store(
    database: Database, report: Report, buckets: list[ReportBucket], lines: Lines, now: datetime, *, first: bool = True
) -> None:
    """Replace the buckets that have not been marked since they were read.
    The days before the first line have none, if these buckets are the first ones."""
    changes: list[Any] = []
    for bucket in dropwhile(
        lambda each: first and not lines.get(each.start.date()) and each.computed_at is None, buckets
    ):
        settled = midnight(period_end(bucket.start.date(), bucket.by)) + _SETTLED <= now
        if bucket.start > now or (not settled and not report.late_s and not bucket.version):
            continue
        values: dict[str, Any] = {"computedAt": now, "dirty": None if settled else True}
        computed = lines.get(bucket.start.date(), [])
        if bucket.computed_at is None or not report.same(bucket.lines, computed):
            values["lines"] = computed
        changes.append(({"_id": bucket.id, "version": bucket.version}, {"$set": values}, _bare(bucket)))
    # Of one that exists since, or has been marked, the insert is refused.
    with suppress(DocumentExists):
        await database[REPORT_BUCKETS].upsert_each(changes)


def _usable(report: Report, bucket: ReportBucket, now: datetime) -> bool:
    if bucket.computed_at is None:
        return False
    return bucket.dirty is None or now - bucket.computed_at < timedelta(seconds=report.late_s)


def _fresh(report: Report, by: By, start: date) -> ReportBucket:
    return ReportBucket(id=f"{report.name}:{by}:{start}", report=report.name, by=by, start=midnight(start))


def _bare(bucket: ReportBucket) -> ReportBucket:
    return ReportBucket(id=bucket.id, report=bucket.report, by=bucket.by, start=bucket.start)


def _runs(periods: Sequence[Period], *, most: int | None = None) -> Iterator[list[Period]]:
    """Periods that follow each other."""
    run: list[Period] = []
    for period in periods:
        if run and (run[-1][1] != period[0] or len(run) == most):
            yield run
            run = []
        run.append(period)
    if run:
        yield run
