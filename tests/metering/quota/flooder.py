"""Four processes that make calls until their burst is refused: `flooder.py URL SIZE TIMEOUT_S`.

Each says `warm` after 25 calls that were admitted, and at the end how many were. Until it is warm, an answer
may take longer than the timeout: the machine may be busy.
"""

import asyncio
import os
import sys

from ximler.core import logs
from ximler.core.settings import Settings
from ximler.database import valkey
from ximler.database.valkey import Valkey
from ximler.metering.quota.bursts import BurstExceeded, Bursts
from ximler.metering.quota.shared_bursts import SharedBursts

PROCESSES, CALLERS, CALLS, WARM = 4, 4, 60, 25


async def work(url: str, size: int, timeout_s: float) -> None:
    limits = [Bursts("this key", rate=0.01, size=size), Bursts("this account", rate=0.01, size=2 * size)]
    shared = SharedBursts(Valkey(url, prefix="flood"), limits=limits, workers=PROCESSES)
    admitted = 0
    valkey.TIMEOUT_S = 5.0

    async def call() -> None:
        nonlocal admitted
        for _ in range(CALLS):
            await asyncio.sleep(0.005)
            try:
                await shared.take((b"k" * 12, b"o" * 12), 1)
            except BurstExceeded:
                continue
            admitted += 1
            if admitted == WARM:
                valkey.TIMEOUT_S = timeout_s
                print("warm", flush=True)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    print(admitted, flush=True)
    await shared._valkey.close()


logs.configure(Settings())
copies = []
for _ in range(PROCESSES):
    if not (copy := os.fork()):
        asyncio.run(work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
        os._exit(0)
    copies.append(copy)
for copy in copies:
    os.waitpid(copy, 0)
