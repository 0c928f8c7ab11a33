"""Mongoose 9 in a node process of its own, with the specification's models (those of `tests/mongoose`).

Null and missing fields need nothing there: the models declare few fields as required, and it hydrates what it
finds. Its clock is its own (`performance.now` around the awaited call); its garbage is collected before each
run, as everybody's is.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.mongoose.peer import HERE
from tests.node import node_with

from bench.setup import scratch

__all__ = ["Mongoose", "mongoose"]


class Mongoose:
    # Not asyncio's subprocess: uvloop forks with Python's fork hooks,
    # and PyMongo's complain in a child without a loop.
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._versions = self._read()

    def __str__(self) -> str:
        return f"Mongoose {self._versions['mongoose']} on node {self._versions['node']}"

    async def ask(self, verb: str, count: int) -> float:
        """Seconds; 0 for what is not timed. Fails unless it was about `count` documents."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb}\n")
        self._process.stdin.flush()
        reply = await asyncio.to_thread(self._read)
        if "error" in reply:
            raise RuntimeError(f"Mongoose: {reply['error']}")
        assert reply["count"] == count, reply
        return float(reply.get("seconds", 0))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the node process has ended; its stderr says why")
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def mongoose(uri: str, database: str) -> AsyncIterator[Mongoose | str]:
    """The running application, or the reason why there is none: no node, or no way to install Mongoose."""
    try:
        node, modules = await asyncio.to_thread(node_with, HERE)
    except (RuntimeError, OSError, subprocess.SubprocessError) as problem:
        yield str(problem).splitlines()[0]
        return
    with scratch() as temporary:
        folder = Path(temporary)
        for file in (HERE / "package.json", HERE / "models.js", Path(__file__).with_name("mongoose.js")):
            shutil.copy(file, folder)
        (folder / "node_modules").symlink_to(modules, target_is_directory=True)
        # --no-warnings: the models declare some indexes twice, as the specification does.
        with subprocess.Popen(
            [node, "--no-warnings", "--expose-gc", "mongoose.js"],
            cwd=folder,
            env={**os.environ, "XIMLER_BENCH": json.dumps([uri, database])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:  # leaving closes its standard input, which ends it, and waits
            yield Mongoose(process)
