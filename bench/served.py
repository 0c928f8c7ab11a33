"""`ximler up` on a database in a separate process, for topics that load it over HTTP."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.setup import Setup
from ximler.database import Database

__all__ = ["SECRET", "served"]

SECRET = "k" * 32
_PATIENCE_S = 60


@asynccontextmanager
async def served(setup: Setup, database: Database, *, log_level: str = "info") -> AsyncIterator[tuple[int, int]]:
    """The port and the process: one worker, no jobs, and the log into a file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XIMLER_", "MONGODB_"))}
    environment |= {
        "MONGODB_URI": setup.uri,
        "XIMLER_DATABASE": database.name,
        "XIMLER_SECRET_KEY": SECRET,
        "XIMLER_LOG_LEVEL": log_level,
        "XIMLER_WORKER": "false",
        "XIMLER_API_RATE": "1000000",
        "XIMLER_API_BURST": "1000000",
    }
    with tempfile.NamedTemporaryFile("r") as said:
        log = Path(said.name)
        command = [sys.executable, "-m", "ximler", "up", "--port", "0"]
        with log.open("w") as stderr:  # noqa: ASYNC230 (a moment)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            began = time.monotonic()
            while not (found := re.search(r"(http://\S+)/graphql", log.read_text())):  # noqa: ASYNC240 (tiny)
                if process.poll() is not None or time.monotonic() - began > _PATIENCE_S:
                    raise RuntimeError(f"ximler up ended: {log.read_text()}")  # noqa: ASYNC240 (the end)
                await asyncio.sleep(0.05)
            yield urlsplit(found[1]).port or 80, process.pid
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 30)
