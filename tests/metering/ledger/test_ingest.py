"""Ingestion of streams: every line answered for, wherever the stream is cut."""

import tracemalloc
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Unavailable
from ximler.database import Database
from ximler.metering.ledger import ingest as module
from ximler.metering.ledger import settlement
from ximler.metering.ledger.ingest import MAX_LINE, MAX_REFUSED, ingest

OPERATOR = Actor(kind="operator", via="cli")


def line(person: Actor, at: datetime, **fields: Any) -> bytes:
    return msgspec.json.encode({"id": "a", "userId": str(person.user_id), "at": at, **fields})


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_every_line_is_answered_for(database: Database, person: Actor) -> None:
    now = database.clock.now()
    lines = [
        line(person, now),
        line(person, now),
        b"",
        line(person, now, amount=2),
        b"{nonsense",
        line(person, now, id="b", amount="5"),
        line(person, now, id="c", colour="red"),
        line(person, now, id="d" * 5000),
        b"\xff\xfe",
        line(person, now, id="e", amount=-1),
        line(person, now, id="last"),
    ]
    report = await ingest(database, OPERATOR, stream(b"\n".join(lines)))
    assert (report.lines, report.accepted, report.duplicates, report.complete) == (11, 2, 1, True)
    assert [(refusal.line, refusal.status) for refusal in report.refused] == [
        (4, "CONFLICT"), (5, "INVALID"), (6, "INVALID"), (7, "INVALID"), (8, "INVALID"), (9, "INVALID"), (10, "INVALID"),
    ]  # fmt: skip
    reasons = [refusal.reason for refusal in report.refused]
    assert reasons[2] == "amount: Expected a whole number, got 'str'"
    assert "colour" in reasons[3]
    assert reasons[4] == f"the line is longer than {MAX_LINE} bytes"
    assert reasons[6].startswith("amount: must be between 1 and")


@pytest.mark.parametrize("others", [0, 1, 3])
async def test_a_line_with_a_key_twice_is_refused(database: Database, person: Actor, others: int) -> None:
    now = database.clock.now()
    once = line(person, now, amount=5)
    doubled = [
        once[:-1] + b', "amount" :7}',
        once[:-1] + b',"\\u0061mount":7}',
        once[:-1] + b',"id":"b"}',
    ]
    for number, wrong in enumerate(doubled):
        plain = [line(person, now, id=f"{number}.{other}") for other in range(others)]
        report = await ingest(database, OPERATOR, stream(b"\n".join([*plain, wrong, line(person, now, id="\u00e9")])))
        [refusal] = report.refused
        assert (refusal.line, refusal.reason) == (
            others + 1,
            "amount: given twice" if number < 2 else "id: given twice",
        )
    report = await ingest(database, OPERATOR, stream(line(person, now, id='a"amount"b', source='"id"')))
    assert report.accepted == 1


@pytest.mark.slow
@hypothesis_settings(max_examples=200)
@given(st.lists(st.integers(min_value=0, max_value=700), max_size=10), st.integers(min_value=1, max_value=5))
def test_it_does_not_matter_where_a_stream_is_cut(cuts: list[int], size: int) -> None:
    text = b"\n".join(
        b'{"id": "%d", "at": "2026-01-31T12:00:00Z"}' % n if n % 3 else b"" if n % 2 else b"x" * 20 for n in range(20)
    )
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    chunks = [text[one:other] for one, other in pairwise(places)]
    whole, parts = read(module._batches(stream(text), 1000)), read(module._batches(stream(*chunks), size))
    assert [item for _, batch in parts for item in batch] == [item for _, batch in whole for item in batch]
    assert [first for first, _ in parts] == [1 + n * size for n in range(len(parts))]


def read(batches: AsyncIterator[Any]) -> list[Any]:
    """Without an event loop: nothing in them waits."""

    def steps() -> Iterator[Any]:
        while True:
            try:
                batches.__anext__().send(None)  # type: ignore[attr-defined]  # a generator's
            except StopIteration as item:
                yield item.value
            except StopAsyncIteration:
                return

    return list(steps())


async def test_reading_stops_where_too_much_is_refused_and_says_how_far_it_got(
    database: Database, person: Actor
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"nonsense\n" * 500

    report = await ingest(database, OPERATOR, endless(), batch=500)
    assert not report.complete
    assert MAX_REFUSED <= len(report.refused) == report.lines <= MAX_REFUSED + 1000


@pytest.mark.slow
async def test_sending_a_file_again_after_an_interruption_counts_the_rest(database: Database, person: Actor) -> None:
    now = database.clock.now()
    lines = [line(person, now - timedelta(seconds=n % 50), id=str(n)) + b"\n" for n in range(3000)]

    async def broken() -> AsyncIterator[bytes]:
        for part in lines[:2000]:
            yield part
        raise Unavailable("the connection is gone")

    with pytest.raises(Unavailable):
        await ingest(database, OPERATOR, broken(), batch=500)
    report = await ingest(database, OPERATOR, stream(*lines), batch=500)
    assert report.accepted + report.duplicates == 3000
    assert report.duplicates >= 500
    await settlement.settle(database)
    assert sum(row.amount for row in await database.usage.find({"userId": person.user_id})) == 3000


@pytest.mark.slow
async def test_memory_does_not_grow_with_the_stream(database: Database, person: Actor) -> None:
    now = database.clock.now()

    async def many(count: int) -> AsyncIterator[bytes]:
        for n in range(count):
            yield line(person, now, id=str(n % 300)) + b"\n"

    async def peak(count: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        await ingest(database, OPERATOR, many(count), batch=500)
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        await peak(2000)
        short, long = await peak(2000), await peak(20_000)
    finally:
        tracemalloc.stop()
    assert long < short * 1.5


async def test_permission_is_checked_before_the_stream_is_read(database: Database, person: Actor) -> None:
    async def untouched() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    with pytest.raises(Forbidden):
        await ingest(database, person, untouched())


async def test_an_operators_import_is_audited(database: Database, person: Actor) -> None:
    await ingest(database, OPERATOR, stream(line(person, database.clock.now())))
    [entry] = await database.audit_logs.find({"action": "metering.usage.imported"})
    assert entry.metadata["after"] == {"accepted": 1, "duplicates": 0, "refused": 0}
