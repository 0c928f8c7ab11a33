"""A process that rolls up: `roller.py URI DATABASE APPLICATION`.

For each line it reads, `refresh` or `rebuild`, a copy of it says its process id and does so: copies start at
once, where a new process would spend a second on imports.
"""

import asyncio
import os
import sys

from ximler.analytics import rollups, verification
from ximler.core import logs
from ximler.core.settings import Settings
from ximler.database import connect, connection


async def work(uri: str, name: str, act: str) -> None:
    database = await connect(uri, name=name)
    print(os.getpid(), flush=True)
    await (rollups.refresh(database) if act == "refresh" else verification.rebuild(database))
    print("done", flush=True)
    await database.close()


logs.configure(Settings())
connection.__version__ = sys.argv[3]  # of the name that its sessions are found by
rollups._MOVEMENTS, rollups._USERS, rollups._DAYS = 50, 20, 30  # many transactions
for line in sys.stdin:
    if not (copy := os.fork()):
        asyncio.run(work(sys.argv[1], sys.argv[2], line.strip()))
        os._exit(0)
    os.waitpid(copy, 0)
    print("ended", flush=True)
