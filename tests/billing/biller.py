"""Plays billing forward until killed:
`python -m tests.billing.biller URI DATABASE SECRET FROM UNTIL`, ISO dates in UTC."""

import asyncio
import sys
from datetime import datetime

from ximler.billing import run
from ximler.billing.rails import sandbox
from ximler.core import logs
from ximler.core.clock import to_ms
from ximler.core.settings import Settings
from ximler.database import connect


async def main(uri: str, name: str, secret: str, begin: str, until: str) -> None:
    settings = Settings(secret_key=secret, log_level="error")
    logs.configure(settings)  # to standard error
    database = await connect(uri, name=name)
    database.clock.offset_ms += to_ms(datetime.fromisoformat(begin)) - database.clock.now_ms()
    print("begun", flush=True)
    await run.forward(database, sandbox(database, settings), datetime.fromisoformat(until))
    print("done", flush=True)
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:6]))
