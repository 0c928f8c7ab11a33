"""Twenty editors, and a process that is killed again and again:
every answered patch holds, once, in a revision of its own.

The editors are in the process, or they are HTTP clients of a server whose connections are cut at random.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.projects import editors

from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.core.stopping import end
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.projects import canvas, projects, records
from ximler.projects.live import Event, Live
from ximler.projects.patches import LOGGED

EDITORS = 20
SECRET = "a secret key that is only for the tests"
Life = Callable[[Database, str, Actor, str, dict[int, int], int], Awaitable[set[int]]]


async def _edit(
    database: Database, uri: str, ada: Actor, project: str, answered: dict[int, int], until: int
) -> set[int]:
    """One process's life, ended after `until` answers. Returns the revisions of its answers."""
    script, user = str(Path(editors.__file__)), str(ada.user_id)
    first = [str(answered[client] + 1) for client in range(EDITORS)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, uri, database.name, user, project, *first, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    revisions = set()
    try:
        async for line in process.stdout:
            if not line.startswith(b"saved "):
                continue
            client, seq, revision = map(int, line.split()[1:])
            assert seq == answered[client] + 1
            answered[client] = seq
            revisions.add(revision)
            until -= 1
            if until == 0:
                process.kill()
    except BaseException:
        process.kill()
        raise
    finally:
        await process.wait()
    return revisions


def _port(log: Path) -> int | None:
    found = re.search(r"http://[\d.]+:(\d+)/graphql", log.read_text())
    return int(found[1]) if found else None


@contextlib.asynccontextmanager
async def _server(
    database: Database, uri: str, log: Path, *, worker: bool = False
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A server's process, and its port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XIMLER_", "MONGODB_"))}
    environment |= {
        "MONGODB_URI": uri, "XIMLER_DATABASE": database.name, "XIMLER_SECRET_KEY": SECRET, "XIMLER_WORKER": str(worker),
        "XIMLER_SESSION_RATE": "100000", "XIMLER_SESSION_BURST": "100000", "XIMLER_SESSION_DAILY": "100000",
    }  # fmt: skip
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ximler", "up", "--port", "0", env=environment, stderr=file, stdout=file
        )
    try:
        async with asyncio.timeout(120):
            while (port := _port(log)) is None:
                assert process.returncode is None, log
                await asyncio.sleep(0.02)
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Passed(Exception):
    """The patch is no longer in the log."""


class Clients:
    """HTTP clients on sockets. Some requests are cut off: while being sent, before the answer, or
    within it. Some clients repeat the patch before their latest."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        self.cuts = self.repeated = 0
        self._revisions: dict[tuple[int, int], int] = {}  # by client and number

    async def edit(
        self, database: Database, uri: str, ada: Actor, project: str, answered: dict[int, int], until: int
    ) -> set[int]:
        """The life of one server. As `_edit`."""
        revisions: set[int] = set()
        async with _server(database, uri, self._log) as (process, port):
            token = await self._token(database, ada)
            left = [until]

            async def editor(client: int) -> None:
                while answered[client] < editors.LAST and process.returncode is None:
                    repeats = answered[client] > 1 and random.random() < 0.2
                    seq = answered[client] - 1 if repeats else answered[client] + 1
                    patch = editors.patch(client, seq)
                    try:
                        revision = await self._send(port, token, project, json.dumps(patch).encode())
                    except (OSError, EOFError):
                        continue  # sent again as it is, to this server or to the next one
                    except Passed:  # the answers of some later revisions were lost
                        behind = max(self._revisions.values()) - self._revisions[client, seq]
                        assert (repeats, behind > LOGGED - EDITORS) == (True, True), behind
                        continue
                    assert self._revisions.setdefault((client, seq), revision) == revision
                    if repeats:
                        self.repeated += 1
                        continue
                    answered[client] += 1
                    revisions.add(revision)
                    left[0] -= 1
                    if left[0] == 0:
                        process.kill()
                        await process.wait()

            await asyncio.gather(*map(editor, range(EDITORS)))
        return revisions

    async def _token(self, database: Database, ada: Actor) -> str:
        user = await database.users.find_one({"_id": ada.user_id})
        assert user is not None
        settings = Settings(secret_key=SECRET)
        return (await sessions.start(database, Keyring(settings), settings, Actor(), user)).token

    async def _send(self, port: int, token: str, project: str, body: bytes) -> int:
        """The answer's revision. Raises Passed, and OSError, EOFError where the connection ends before,
        which is cut at random."""
        request = (
            f"PATCH /v1/projects/{project}/canvas HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
            f"content-type: {records.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            match random.choice(["whole", "whole", "whole", "sent in part", "unanswered", "answered in part"]):
                case "sent in part":
                    writer.write(request[: random.randrange(len(request))])
                    await writer.drain()
                    raise self._cut(writer)
                case "unanswered":
                    writer.write(request)
                    await writer.drain()
                    await asyncio.sleep(random.random() / 50)
                    raise self._cut(writer)
                case "answered in part":
                    writer.write(request)
                    await reader.readexactly(1)
                    raise self._cut(writer)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            answer = await reader.readexactly(int(length[1]) if length else 0)
            if b"SEQ_PASSED" in answer:
                raise Passed
            assert head.startswith(b"HTTP/1.1 200"), answer
            return int(json.loads(answer)["revision"])
        finally:
            writer.transport.abort()

    def _cut(self, writer: asyncio.StreamWriter) -> OSError:
        writer.transport.abort()
        self.cuts += 1
        return ConnectionAbortedError()


async def _run(database: Database, uri: str, ada: Actor, kills: int, edit: Life = _edit) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"elements": [{"id": "shared"}]})
    feed, stop = Feed(database), asyncio.Event()
    live = Live(database, feed)
    following = asyncio.create_task(feed.run(stop))
    await feed.caught_up()
    answered, revisions = dict.fromkeys(range(EDITORS), 0), set[int]()
    events: list[Event] = []
    total = EDITORS * editors.LAST
    with live.follow(ada, made.id) as follower:
        await live.begin(follower, 0)

        async def collect() -> None:  # all the time: the queue has room for 256
            while True:
                events.extend(await follower.events(60))

        collecting = asyncio.create_task(collect())
        for kill in range(kills + 1):
            left = total - sum(answered.values())
            until = -1 if kill == kills else random.randint(1, max(1, left // 2))
            revisions |= await edit(database, uri, ada, str(made.id), answered, until)
        await feed.caught_up()
        await end([collecting], patience_s=0)
        events += await follower.events(0)
    now = await canvas.read(database, ada, made.id)
    stop.set()
    await end([following], patience_s=5)
    assert answered == dict.fromkeys(range(EDITORS), editors.LAST)
    assert [event.revision for event in events] == list(range(1, now.canvas_revision + 1))
    assert revisions <= {event.revision for event in events}
    applied = [tuple(by) for event in events for by in json.loads(event.patch or b"{}")["by"]]
    assert len(applied) == total
    assert set(applied) == {(f"tab{client}", seq) for client in range(EDITORS) for seq in range(1, editors.LAST + 1)}
    records = {record["id"]: record for record in now.canvas_data["elements"]}
    client, seq = applied[-1]
    assert records.pop("shared") == {
        "id": "shared",
        "last": f"{client.removeprefix('tab')}-{seq}",
        **{f"x{client}": editors.LAST for client in range(EDITORS)},
    }
    drawn = {
        f"{client}-{seq}": seq for client in range(EDITORS) for seq in range(3, editors.LAST + 1, 3) if seq % 9 != 6
    }
    assert {name: record["n"] for name, record in records.items()} == drawn


@pytest.mark.slow
async def test_editors_survive_a_killed_process(database: Database, mongodb_uri: str, ada: Actor) -> None:
    await _run(database, mongodb_uri, ada, kills=1)


@pytest.mark.soak
async def test_editors_survive_many_killed_processes(database: Database, mongodb_uri: str, ada: Actor) -> None:
    await _run(database, mongodb_uri, ada, kills=25)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "last"), [(1, 5), pytest.param(8, 37, marks=pytest.mark.soak)])
async def test_http_clients_that_are_cut_at_random_survive_a_killed_server(
    database: Database,
    mongodb_uri: str,
    ada: Actor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kills: int,
    last: int,
) -> None:
    monkeypatch.setattr(editors, "LAST", last)
    clients = Clients(tmp_path)
    await _run(database, mongodb_uri, ada, kills, clients.edit)
    assert clients.cuts > EDITORS * last // 10
    assert clients.repeated > 0


@pytest.mark.soak
async def test_another_server_finds_the_writes_of_others_since_one_was_killed(
    database: Database, mongodb_uri: str, ada: Actor, tmp_path: Path
) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"a": 0})

    async def write(value: int) -> None:
        await database.raw["projects"].update_one({"_id": made.id}, {"$set": {"canvasData": {"a": value}}})

    async def revision(least: int) -> None:
        async with asyncio.timeout(60):
            while (await canvas.read(database, ada, made.id)).canvas_revision < least:  # noqa: ASYNC110 (of others)
                await asyncio.sleep(0.05)

    async with _server(database, mongodb_uri, tmp_path / "first", worker=True) as (first, _):
        await write(1)
        await revision(1)
        async with _server(database, mongodb_uri, tmp_path / "second", worker=True) as (second, _):
            first.kill()
            await first.wait()
            await write(2)  # the first server has the lease for some seconds more
            await revision(2)
            second.kill()
            await second.wait()
    await write(3)
    async with _server(database, mongodb_uri, tmp_path / "third", worker=True):
        await revision(3)
