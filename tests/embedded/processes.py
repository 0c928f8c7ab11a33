"""Processes of this machine, as tests of the embedded server see them."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["alive", "eventually", "processes_naming"]


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
