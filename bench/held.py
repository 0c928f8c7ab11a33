"""Topic `held`: the memory that clients can make one process hold by sending and reading slowly."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from bson import ObjectId

from bench.report import Figure, Table
from bench.served import SECRET, served
from bench.setup import Setup
from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.projects import projects
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = ["run"]

_BODIES, _BODY = 400, 900_000
_ANSWERS, _CANVAS = 80, 8_000_000
_EXPORTS = 12
_STREAMS, _PATCHES, _PATCH = 64, 60, 50_000
_SIDE = (4000, 3000)
_WAITS = 1.5  # seconds without growth after which nothing more is expected

Person = tuple[str, ObjectId]  # a token, and a project


async def run(setup: Setup) -> list[Table]:
    if sys.platform != "linux":
        return []
    async with setup.database(initialised=True) as database:
        people = await _people(database)
        async with served(setup, database, log_level="error") as (port, pid):
            held = _Held(port, pid, people)
            await held.warm()
            grown = {
                f"{_BODIES} bodies of {_BODY / 1e6} MB that stall": (await held.bodies(), 160),
                f"{_ANSWERS} answers of {_CANVAS / 1e6:.0f} MB that are not read": (await held.answers(), 400),
                f"{_EXPORTS} exports that are not read": (await held.exports(), 60),
                f"{_STREAMS} streams of {_PATCHES} patches of {_PATCH / 1e3:.0f} kB that are not read": (
                    await held.streams(),
                    100,
                ),
                f"a picture of {_SIDE[0] * _SIDE[1] / 1e6:.0f} megapixels": (await held.picture(), 300),
            }
    figures = [Figure(what=what, value=mb, unit="MB", most=most) for what, (mb, most) in grown.items()]
    notes = [
        "Growth of the process's resident memory at its peak, with `XIMLER_IN_FLIGHT_MB` at its default of 256: half of it for bodies of "
        "strangers. An answer is encoded beside its document before it is counted."
    ]
    return [Table(title="Memory held for slow clients", figures=figures, notes=notes)]


async def _people(database: Database) -> list[Person]:
    settings = Settings(secret_key=SECRET)
    keyring = Keyring(settings)
    found = []
    canvas = {"elements": [{"id": f"s{n}", "text": os.urandom(500).hex()} for n in range(_CANVAS // 1030)]}
    for n in range(_EXPORTS):
        user = await database.users.insert(User(name="P", email=f"p{n}@example.com", password="-", email_verified=True))
        now = database.clock.now()
        await database.subscriptions.insert(
            Subscription(user_id=user.id, plan_id="enterprise", status="ACTIVE", start_date=now, price=99)
        )
        actor = Actor(kind="user", via="session", user_id=user.id)
        project = await projects.create(database, actor, name="p", canvas_data=canvas)
        found.append(((await sessions.start(database, keyring, settings, Actor(), user)).token, project.id))
    keyring.close()
    return found


class _Held:
    def __init__(self, port: int, pid: int, people: list[Person]) -> None:
        self._port, self._process, self._people = port, Path(f"/proc/{pid}"), people

    def _memory(self, name: str) -> float:
        lines = (self._process / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

    @asynccontextmanager
    async def _growing(self) -> AsyncIterator[list[float]]:
        """Has the growth, in MB, after the block and once it has ended."""
        (self._process / "clear_refs").write_text("5")  # the peak begins anew
        before = self._memory("VmRSS")
        grown = [0.0]
        yield grown
        peak = 0.0
        while (now := self._memory("VmHWM")) > peak:
            peak = now
            await asyncio.sleep(_WAITS)
        grown[0] = peak - before

    async def _send(self, head: str, body: bytes = b"", *, whose: Person | None = None, size: int | None = None) -> Any:
        token = f"Authorization: Bearer {whose[0]}\r\n" if whose else ""
        length = f"Content-Length: {len(body) if size is None else size}\r\n" if body else ""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1024)
        writer.write(
            f"{head} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{token}{length}\r\n".encode() + body
        )
        return reader, writer

    async def _read(self, head: str, body: bytes = b"", *, whose: Person | None = None) -> bytes:
        reader, writer = await self._send(f"{head}", body, whose=whose)
        try:
            head_bytes = await reader.readuntil(b"\r\n\r\n")
            return bytes(head_bytes.split(b" ", 2)[1])
        finally:
            writer.transport.abort()

    async def _unread(self, requests: list[tuple[str, Person]]) -> float:
        writers = []
        async with self._growing() as grown:
            for head, whose in requests:
                writers.append((await self._send(head, whose=whose))[1])
                await asyncio.sleep(0.05)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(_WAITS)
        return grown[0]

    async def warm(self) -> None:
        for whose in self._people:
            assert await self._read(f"GET /v1/projects/{whose[1]}/canvas", whose=whose) == b"200"
        await asyncio.sleep(_WAITS)

    async def bodies(self) -> float:
        async with self._growing() as grown:
            sent = b"{" * (_BODY - 1)
            writers = [(await self._send("POST /graphql", sent, size=_BODY))[1] for _ in range(_BODIES)]
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(_WAITS)
        return grown[0]

    async def answers(self) -> float:
        people = [self._people[n % len(self._people)] for n in range(_ANSWERS)]
        head = "GET /graphql?query={project(id:%22ID%22){canvasData}}"
        return await self._unread([(head.replace("ID", str(whose[1])), whose) for whose in people])

    async def exports(self) -> float:
        return await self._unread([(f"GET /v1/projects/{whose[1]}/export", whose) for whose in self._people])

    async def streams(self) -> float:
        people = [self._people[n % (_STREAMS // 8)] for n in range(_STREAMS)]
        writers = [(await self._send(f"GET /v1/projects/{each[1]}/canvas/changes", whose=each))[1] for each in people]
        await asyncio.sleep(_WAITS)
        async with self._growing() as grown:
            for n in range(_PATCHES):
                for whose in self._people[: _STREAMS // 8]:
                    put = {"id": f"n{n % 5}", "text": "x" * _PATCH}
                    patch = msgspec.json.encode({"client": "c", "seq": n + 1, "put": [put]})
                    said = await self._patch(whose, patch)
                    assert said in (b"200", b"204"), said
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(_WAITS)
        return grown[0]

    async def _patch(self, whose: Person, patch: bytes) -> bytes:
        head = f"PATCH /v1/projects/{whose[1]}/canvas HTTP/1.1\r\nHost: x\r\nContent-Type: application/vnd.ximler.records+json"
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            f"{head}\r\nAuthorization: Bearer {whose[0]}\r\nContent-Length: {len(patch)}\r\n\r\n".encode() + patch
        )
        line = await reader.readline()
        writer.close()
        return line.split(b" ", 2)[1]

    async def picture(self) -> float:
        from PIL import Image

        out = io.BytesIO()
        Image.new("RGB", _SIDE).save(out, "WEBP", method=0)
        async with self._growing() as grown:
            head = "PUT /v1/avatar HTTP/1.1\r\nHost: x\r\nContent-Type: image/webp"
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            size = out.getbuffer().nbytes
            authorized = f"Authorization: Bearer {self._people[0][0]}\r\nContent-Length: {size}\r\n\r\n"
            writer.write(f"{head}\r\n{authorized}".encode() + out.getvalue())
            line = await reader.readline()
            assert b" 200 " in line or b" 204 " in line, line
            writer.close()
        return grown[0]
