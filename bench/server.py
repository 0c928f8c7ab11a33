"""Topic `server`: from nothing to a database that takes writes, and to an application that answers."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from pymongo import AsyncMongoClient

from bench.report import Figure, Table, ms, spread
from bench.setup import Setup, scratch
from ximler.embedded import server

__all__ = ["run"]

COLD, WARM = "server, cold: an empty folder", "server, warm: the same folder again"
UP_COLD, UP_WARM = "ximler up, cold: an empty folder", "ximler up, warm: the same folder again"
STOP, UP_STOP = "server: stop", "ximler up: SIGTERM to exit"
LIMITS = {COLD: 1500, WARM: 1500, UP_COLD: 4000, UP_STOP: 2000}
_PATIENCE_S = 60


async def run(setup: Setup) -> list[Table]:
    samples: dict[str, list[float]] = {name: [] for name in (COLD, WARM, STOP, UP_COLD, UP_WARM, UP_STOP)}
    for _ in range(setup.rounds(12)):
        with scratch() as folder:
            for name in (COLD, WARM):
                await _server(Path(folder), samples[name], samples[STOP])
        with scratch() as folder:
            for name in (UP_COLD, UP_WARM):
                await asyncio.to_thread(_up, Path(folder), samples[name], samples[UP_STOP])
    figures = [
        Figure(what=name, value=median(taken) * 1e3, unit="ms", most=LIMITS.get(name))
        for name, taken in samples.items()
    ]
    return [
        Table(
            title="server: start and stop",
            figures=figures,
            columns=("", "median", "fastest", "spread"),
            rows=[(name, ms(median(taken)), ms(min(taken)), spread(taken)) for name, taken in samples.items()],
            notes=[
                f"{len(samples[COLD])} rounds. The server's time ends when a write with majority has been acknowledged, on an "
                "authenticated connection; that of `ximler up` when GET /readyz has answered 200, seeded collections and all.",
            ],
            samples=samples,
        )
    ]


async def _server(folder: Path, started: list[float], stopped: list[float]) -> None:
    began = time.perf_counter()
    running = await server.start(folder)
    try:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(running.uri)
        async with client:
            await client["bench"]["first"].insert_one({"x": 1})
        started.append(time.perf_counter() - began)
    finally:
        began = time.perf_counter()
        await running.stop()
        stopped.append(time.perf_counter() - began)


def _up(folder: Path, started: list[float], stopped: list[float]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XIMLER_", "MONGODB_"))}
    command = [str(Path(sys.executable).with_name("ximler")), "up", "--port", "0", "--data-dir", str(folder)]
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = _url(process)
            with urllib.request.urlopen(f"{url}/readyz", timeout=_PATIENCE_S) as answer:
                assert answer.status == 200
            started.append(time.perf_counter() - began)
        finally:
            began = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=_PATIENCE_S)
        stopped.append(time.perf_counter() - began)
        assert process.returncode == 0, said


def _url(process: "subprocess.Popen[str]") -> str:
    """Parsed from the output at start."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"(http://\S+)/graphql", line):
            return found[1]
    raise RuntimeError(f"ximler up ended: {''.join(said)}")
