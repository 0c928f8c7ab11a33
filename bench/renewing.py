"""Bills everything that is due in a database, in a process of its own:
`python -m bench.renewing URI DATABASE`. Prints a line per batch: the accounts so far, and the peak of memory
in MB.
"""

import asyncio
import resource
import sys

import uvloop

from bench.setup import silence
from ximler.billing import run as billing
from ximler.billing.rails import sandbox
from ximler.core.settings import Settings
from ximler.database import connect


async def _main(uri: str, name: str) -> None:
    database = await connect(uri, name=name)
    rail = sandbox(database, Settings(secret_key="0" * 43))
    await billing.run(database, rail, progress=_say)
    await database.close()


def _say(accounts: int) -> None:
    print(accounts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, flush=True)


if __name__ == "__main__":
    silence()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(*sys.argv[1:3]))
