"""Many entries looked at: the part of verifying that needs neither the database nor a key, so that other processes can do it.

`Examiners` are such processes: as many as the machine has processors, which start in 50 ms and hold nothing but what they are
looking at. They end with their standard input, so also when whoever started them is killed; one that ends before makes
everything fail, because of what it had in hand nothing is known.
"""

import asyncio
import contextlib
import os
import struct
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

import bson
import msgspec

from ximler.audit import fingerprint
from ximler.audit.actions import Action
from ximler.core.errors import Unavailable

__all__ = ["Entry", "ExaminerEnded", "Examiners", "Finding", "examiners", "look"]

_SIZE = struct.Struct("<Q")

Entry = tuple[bytes, bytes, int]  # (as it is stored, the hash that was sealed, what was odd)


class ExaminerEnded(Unavailable):
    """A process that looks at entries has ended before it was told to."""

    code = "AUDIT_EXAMINER_ENDED"


class Finding(msgspec.Struct, array_like=True, gc=False):
    """What is to be said about an entry; of one that is as it was sealed, and has nothing odd about it, nothing is."""

    place: int  # in the list that was looked at
    id: bytes
    hash: bytes
    mac: bytes
    problem: str | None
    gone: list[str]  # who has been erased from it
    tells_of: str | None  # whose erasure it says was asked for


def look(entries: Sequence[Entry]) -> list[Finding]:
    """Examine each."""
    findings = []
    for place, (stored, digest, odd) in enumerate(entries):
        # Decoded one by one: thousands of dicts at once would be looked at, again and again, by garbage collection.
        raw = bson.decode(stored, fingerprint.OPTIONS)
        metadata = raw.get("metadata")
        mark = metadata.get("_audit") if type(metadata) is dict else None
        found = fingerprint.examine(raw, stored)
        problem = found.problem or (None if found.hash == digest else "is not what was sealed")
        tells_of = str(raw.get("resourceId")) if raw.get("action") == Action.PERSON_ERASED else None
        if problem or odd or found.erased or tells_of is not None:
            mac = mark.get("mac") if type(mark) is dict else None
            findings.append(
                Finding(
                    place=place,
                    id=raw["_id"].binary,
                    hash=found.hash,
                    mac=mac if type(mac) is bytes else b"",
                    problem=problem,
                    gone=[_person(raw, of) for of in found.erased],
                    tells_of=tells_of,
                )
            )
    return findings


class Examiners:
    """`look`, by the process that is free first; by this one where there are none."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self.processes = processes
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        for process in processes:
            self._idle.put_nowait(process)

    async def look(self, entries: Sequence[Entry]) -> list[Finding]:
        """Raises ExaminerEnded."""
        if not self.processes:
            findings = []
            for start in range(0, len(entries), 128):
                await asyncio.sleep(0)  # the next are being received
                for finding in look(entries[start : start + 128]):
                    finding.place += start
                    findings.append(finding)
            return findings
        process = await self._idle.get()
        assert process.stdin is not None  # noqa: S101 (both are pipes)
        assert process.stdout is not None  # noqa: S101
        try:
            text = msgspec.msgpack.encode(entries)
            process.stdin.write(_SIZE.pack(len(text)))
            process.stdin.write(text)
            await process.stdin.drain()
            (size,) = _SIZE.unpack(await process.stdout.readexactly(_SIZE.size))
            return _findings.decode(await process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ExaminerEnded(
                "A process that looked at entries has ended, and nothing is known of those that it had: verify again"
            ) from error
        finally:
            self._idle.put_nowait(process)


@asynccontextmanager
async def examiners(count: int) -> AsyncGenerator[Examiners, None]:
    """So many processes; ended when the block is left."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(count):
            processes.append(  # noqa: PERF401 (those that have started must be ended, whatever happens to the next)
                await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for whoever started them
                )
            )  # fmt: skip
        yield Examiners(processes)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in processes:
            await process.wait()


def _person(raw: dict[str, Any], of: str) -> str:
    metadata = raw.get("metadata")
    actor = metadata.get("actorId") if type(metadata) is dict else None
    return str(actor if of == "actor" else raw.get("userId"))


_entries = msgspec.msgpack.Decoder(list[Entry])
_findings = msgspec.msgpack.Decoder(list[Finding])


def _serve(received: IO[bytes], answers: IO[bytes]) -> None:
    while len(size := received.read(_SIZE.size)) == _SIZE.size:
        text = msgspec.msgpack.encode(look(_entries.decode(received.read(_SIZE.unpack(size)[0]))))
        answers.write(_SIZE.pack(len(text)) + text)
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, msgspec.DecodeError):  # whoever started it has ended
        _serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)
