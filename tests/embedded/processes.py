"""Processes of this machine, as tests of the embedded server see them, and those that use such a server."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["VISITOR", "Owner", "alive", "eventually", "in_session", "processes_naming"]

_OWNER = """
import asyncio, json, multiprocessing, os, signal, subprocess, sys
from pathlib import Path
from ximler.embedded import server

data_dir, plan = Path(sys.argv[1]), json.loads(sys.argv[2])

def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)

supervisor = 0

def log(event, **fields):
    global supervisor
    say(event, **fields)
    if event == "mongod.spawned":
        supervisor = os.getsid(fields["pid"])
    if event == plan.get("die_at"):
        if plan.get("all"):
            os.killpg(supervisor, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    running = await server.start(data_dir, log=log)
    if plan.get("children"):
        executed = subprocess.Popen(["sleep", "60"])
        forked = os.fork()
        if not forked:
            signal.pause()
        spawned = multiprocessing.get_context("spawn").Process(target=signal.pause)
        spawned.start()
        say("children", pids=[executed.pid, forked, spawned.pid])
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, say, "interrupted")
    say("up", uri=running.uri, pids=running.pids, supervisors=[os.getsid(p) for p in running.pids])
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""

VISITOR = """
import asyncio, sys
from pathlib import Path
from pymongo import AsyncMongoClient
from ximler.embedded import server

async def main():
    async with server.running(Path(sys.argv[1])) as uri, AsyncMongoClient(uri) as client:
        for _ in range(50):
            await client.t.visits.insert_one({"by": sys.argv[2]})

asyncio.run(main())
"""


class Owner:
    """A separate process that owns a server and reports its events."""

    def __init__(self, data_dir: Path, **plan: Any) -> None:
        script = data_dir.parent / "owner.py"
        script.write_text(_OWNER)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(data_dir), json.dumps(plan)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.seen: list[dict[str, Any]] = []

    async def until(self, event: str) -> dict[str, Any]:
        assert self.process.stdout
        while line := await asyncio.to_thread(self.process.stdout.readline):
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] == event:
                return self.seen[-1]
        raise AssertionError(f"the owner ended before {event}: {self.seen}")

    async def dead(self) -> None:
        await asyncio.to_thread(self.process.wait)
        assert self.process.stdout
        self.process.stdout.close()

    async def kill(self) -> None:
        self.process.kill()
        await self.dead()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def eventually(holds: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 (other processes, without an event)
            await asyncio.sleep(0.02)


def processes_naming(path: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if os.fsencode(path) in command and alive(int(entry.name)):
                found.append(f"{entry.name}: {command.decode()}")
    return found


def in_session(leader: int) -> set[int]:
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if os.getsid(pid) == leader:
                found.add(pid)
    return found
