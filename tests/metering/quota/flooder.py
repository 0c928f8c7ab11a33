"""Four processes that make calls until their burst is refused: `flooder.py URL SIZE TIMEOUT_S`.

Each says `warm` after 25 calls, and goes on slowly until it reads a byte. Then it floods, and says how many
calls were admitted. Until then an answer may take longer than the timeout: the machine may be busy.
"""

import asyncio
import os
import sys
from contextlib import suppress

from ximler.core import logs
from ximler.core.settings import Settings
from ximler.database import valkey
from ximler.database.valkey import Valkey
from ximler.metering.quota.bursts import BurstExceeded, Bursts
from ximler.metering.quota.shared_bursts import SharedBursts

PROCESSES, CALLERS, CALLS, WARM = 4, 4, 100, 25


async def work(url: str, size: int, timeout_s: float) -> None:
    limits = [Bursts("this key", rate=0.01, size=size), Bursts("this account", rate=0.01, size=2 * size)]
    shared = SharedBursts(Valkey(url, prefix="flood"), limits=limits, workers=PROCESSES)
    admitted = made = 0
    flooding = asyncio.Event()
    valkey.TIMEOUT_S = 5.0

    def begin() -> None:
        os.read(0, 1)
        valkey.TIMEOUT_S = timeout_s
        asyncio.get_running_loop().remove_reader(0)
        flooding.set()

    async def call() -> None:
        nonlocal admitted, made
        left = CALLS
        while left:
            if flooding.is_set():
                left -= 1
            else:
                await asyncio.sleep(0.05)
            with suppress(BurstExceeded):
                await shared.take((b"k" * 12, b"o" * 12), 1)
                admitted += 1
            made += 1
            if made == WARM:
                os.write(1, b"warm\n")  # print writes twice where Python is unbuffered

    asyncio.get_running_loop().add_reader(0, begin)
    await asyncio.gather(*(call() for _ in range(CALLERS)))
    os.write(1, f"{admitted}\n".encode())
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
