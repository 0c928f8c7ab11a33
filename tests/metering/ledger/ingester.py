"""A process that records events, for tests that kill it.

`python -m tests.metering.ledger.ingester URI DATABASE FIRST END NOW_MS`.

Equal numbers produce equal events.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import msgspec
from bson import ObjectId

from ximler.core import logs
from ximler.core.actor import SYSTEM
from ximler.core.clock import from_ms
from ximler.core.settings import Settings
from ximler.database import connect
from ximler.metering.ledger.ingest import ingest
from ximler.metering.ledger.settlement import Settler

USERS = [ObjectId(f"{n:024x}") for n in range(1, 41)]


def amount(n: int) -> int:
    return 1 + n % 7


def lines(first: int, end: int, now: datetime) -> list[bytes]:
    return [
        msgspec.json.encode(
            {
                "id": str(n),
                "source": f"source {n % 3}",
                "userId": str(USERS[n % len(USERS)]),
                "at": now - timedelta(seconds=n % 20_000),
                "amount": amount(n),
            }
        )
        + b"\n"
        for n in range(first, end)
    ]


async def main(uri: str, name: str, first: int, end: int, now: datetime) -> None:
    logs.configure(Settings(log_level="error"))  # to standard error
    database = await connect(uri, name=name)
    settling = asyncio.ensure_future(Settler(database).run(asyncio.Event()))

    async def stream() -> AsyncIterator[bytes]:
        for line in lines(first, end, now):
            yield line

    print("begun", flush=True)
    report = await ingest(database, SYSTEM, stream(), batch=500)
    assert report.accepted + report.duplicates == end - first, report
    print("done", flush=True)
    while not settling.done():  # the driver swallows a cancellation now and then
        settling.cancel()
        await asyncio.wait([settling], timeout=0.5)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], *map(int, sys.argv[3:5]), from_ms(int(sys.argv[5]))))  # type: ignore[misc, arg-type]
