"""The node process that speaks for a Mongoose application, and how it comes about."""

import asyncio
import itertools
import os
import shutil
from pathlib import Path
from typing import Any, Self

from bson import DatetimeConversion, json_util
from bson.json_util import CANONICAL_JSON_OPTIONS
from tests.node import node_with

from ximler.core.clock import EPOCH

__all__ = ["HERE", "Application", "MongooseError", "Peer"]

HERE = Path(__file__).parent
_SCRIPTS = ("package.json", "models.js", "peer.js")
_LONGEST_LINE = 64 * 1024 * 1024
_AWARE = json_util.JSONOptions(tz_aware=True, tzinfo=EPOCH.tzinfo, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class MongooseError(Exception):
    """What Mongoose or its driver raised; `code` is MongoDB's, where it has one."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['name']}: {error['message']}")
        self.name: str = error["name"]
        self.code: int | None = error["code"]
        self.fields: list[str] = error["fields"]


class Peer:
    """The node process. Requests may be in flight side by side; each waits for its own answer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, uri: str, folder: Path) -> Self:
        """`folder` becomes the application's: its scripts, and a link to the installed modules."""
        node, modules = await asyncio.to_thread(node_with, HERE)
        for script in _SCRIPTS:
            shutil.copy(HERE / script, folder)
        (folder / "node_modules").symlink_to(modules, target_is_directory=True)
        process = await asyncio.create_subprocess_exec(
            node,
            "--no-warnings",  # Mongoose warns of the double declarations, which are the point
            "peer.js",
            cwd=folder,
            env={**os.environ, "XIMLER_PEER_URI": uri},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
        )
        if await asyncio.wait_for(process.stdout.readline(), 30) != b"ready\n":
            raise ConnectionError("the node process did not start; its stderr says why")
        return cls(process)

    async def ask(self, verb: str, **request: Any) -> Any:
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        line = json_util.dumps({"id": number, "verb": verb, **request}, json_options=CANONICAL_JSON_OPTIONS)
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return await asyncio.wait_for(answer, 60)

    async def _read(self) -> None:
        while line := await self._process.stdout.readline():
            reply = json_util.loads(line, json_options=_AWARE)
            answer = self._waiting.pop(reply["id"])
            if answer.done():
                continue
            if error := reply.get("error"):
                answer.set_exception(MongooseError(error))
            else:
                answer.set_result(reply["result"])
        for answer in self._waiting.values():
            answer.set_exception(ConnectionError("the node process has ended; its stderr says why"))

    async def close(self) -> None:
        self._process.stdin.close()
        await self._reading
        await asyncio.wait_for(self._process.wait(), 10)


class Application:
    """One Mongoose application: `await app.create("User", {…})`,
    `await app.ask("populate", model="User", …)`."""

    def __init__(self, peer: Peer, database: str, *, unbound: bool) -> None:
        self._peer = peer
        self._about = {"database": database, "unbound": unbound}

    async def ask(self, verb: str, **request: Any) -> Any:
        return await self._peer.ask(verb, **self._about, **request)

    async def call(self, model: str, method: str, *args: Any) -> Any:
        """A static of the model; its result as plain values."""
        return await self.ask("call", model=model, method=method, args=args)

    async def create(self, model: str, document: dict[str, Any]) -> dict[str, Any]:
        return await self.call(model, "create", document)

    async def raw(self, collection: str, method: str, *args: Any) -> Any:
        """Beneath Mongoose: nothing cast, stamped or checked."""
        return await self.ask("raw", collection=collection, method=method, args=args)
