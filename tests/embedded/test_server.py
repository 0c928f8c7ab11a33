"""The embedded server with real processes: dying owners and servers, taken ports, damaged data."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from bson import Binary
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError
from tests.embedded.processes import VISITOR, Owner, alive, eventually, in_session, processes_naming

from ximler.core.errors import Invalid
from ximler.embedded import mongod, server

Start = Callable[..., Any]


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in [folder, *folder.rglob("*")] if path.stat().st_mode & 0o077]


def listening_addresses(port: int) -> list[str]:
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return [e[1].partition(":")[0] for e in entries if e[3] == "0A" and e[1].endswith(f":{port:04X}")]


@pytest.fixture
async def start(data_dir: Path) -> AsyncIterator[Start]:
    """`server.start` on the test's data directory.
    Servers that still run afterwards are killed, which is quicker."""
    started: list[server.Server] = []

    async def start(**options: Any) -> server.Server:
        started.append(await server.start(data_dir, **options))
        return started[-1]

    yield start
    for one in started:
        for member in range(len(one.pids)):
            await one.kill(member)
        await one.stop()


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[server.Server]:
    """One server for read-only tests."""
    port = server._free_port()
    shared = await server.start(tmp_path_factory.mktemp("shared") / "data", port=port)
    assert shared.ports == (port,)
    yield shared
    await shared.stop()


@pytest.fixture
async def owner(data_dir: Path) -> AsyncIterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def make(**plan: Any) -> Owner:
        owners.append(Owner(data_dir, **plan))
        return owners[-1]

    yield make
    for one in owners:
        await one.kill()


async def write(uri: str, **document: Any) -> None:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        await client.t.things.insert_one(document)


async def count(uri: str) -> int:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        return await client.t.things.count_documents({})


# Starting and stopping


async def test_cold_and_warm_starts_are_quick_and_do_not_block_the_loop(data_dir: Path, tmp_path: Path) -> None:
    bare, cold, warm, pauses = [], [], [], []

    async def longest_pause(enough: asyncio.Event) -> float:
        longest = 0.0
        while not enough.is_set():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)
        return longest

    for _ in range(3):
        bare.append(await bare_start(tmp_path / "bare"))
        for times in (cold, warm):
            enough = asyncio.Event()
            watch = asyncio.create_task(longest_pause(enough))
            began = time.perf_counter()
            running = await server.start(data_dir)
            await write(running.uri, a=1)
            times.append(time.perf_counter() - began)
            enough.set()
            pauses.append(await watch)
            if times is warm:
                await running.kill()
            await running.stop()
        shutil.rmtree(data_dir)
        # 0.45 s bare on an idle machine; a machine that is busy with other things is slow at all three.
        limit = max(1.5, 3 * min(bare))
        if max(min(cold), min(warm)) <= limit and min(pauses) <= 0.05:
            return
    pytest.fail(f"bare {bare}, cold {cold}, warm {warm}, pauses {pauses}")


async def bare_start(folder: Path) -> float:
    """Seconds until a bare mongod listens."""
    os.mkdir(folder)  # noqa: PTH102 (ruff takes a Path's for blocking)
    began = time.perf_counter()
    bare = await mongod.Mongod.spawn(
        server.find_mongod(), ["--nounixsocket"], dbpath=folder, log_path=folder / "log", port=server._free_port()
    )
    await bare.listening()
    took = time.perf_counter() - began
    bare.kill()
    await bare.exited
    shutil.rmtree(folder)
    return took


async def test_a_clean_stop_keeps_all_data_and_is_idempotent(start: Start, data_dir: Path) -> None:
    running = await start()
    await write(running.uri, a=1)
    waiting = asyncio.create_task(running.wait())
    await asyncio.gather(running.stop(), running.stop())
    await running.stop()
    assert await waiting == 0
    assert running.why() is None
    assert '"exitCode":0' in (data_dir / "mongodb/mongod0.log").read_text()
    await running.restart()  # no effect after a stop
    again = await start()
    assert again.ports == running.ports
    assert again.uri == running.uri
    assert await count(again.uri) == 1


async def test_only_its_user_may_read_the_data_directory(shared: server.Server) -> None:
    assert readable_by_others(shared.data_dir) == []
    assert (shared.data_dir / "mongodb/keyfile").stat().st_mode & 0o777 == 0o600


async def test_connections_without_a_password_are_rejected(shared: server.Server) -> None:
    (port,) = shared.ports
    async with AsyncMongoClient[dict[str, Any]]("127.0.0.1", port, directConnection=True) as stranger:
        hello = await stranger.admin.command("hello", compression=["zlib", "snappy", "zstd"])
        assert "compression" not in hello
        for command in ({"createUser": "me", "pwd": "x", "roles": ["root"]}, {"listDatabases": 1}):
            with pytest.raises(OperationFailure, match="requires authentication"):
                await stranger.admin.command(command)
    assert listening_addresses(port) == ["0100007F"]
    async with AsyncMongoClient[dict[str, Any]](shared.uri) as client:
        with pytest.raises(OperationFailure, match="not authorized"):
            await client.admin.command({"createUser": "me", "pwd": "x", "roles": ["root"]})
    async with AsyncMongoClient[dict[str, Any]](shared.admin_uri) as client:
        await client.admin.command({"createUser": "me", "pwd": "x", "roles": []})
    assert "mongodb://" not in repr(shared.endpoint)


async def test_the_smallest_cache_accepts_documents_of_the_maximum_size(start: Start) -> None:
    running = await start(parameters={"enableTestCommands": "1"})
    async with AsyncMongoClient[dict[str, Any]](running.uri) as client:
        await client.t.things.insert_one({"_id": 0, "b": Binary(os.urandom(16_700_000))})
        await client.t.things.update_one({"_id": 0}, {"$set": {"b": Binary(os.urandom(16_700_000))}})
        async with client.start_session() as session, await session.start_transaction():
            for i in (1, 2):
                await client.t.things.insert_one({"_id": i, "b": Binary(os.urandom(15_000_000))}, session=session)
    await running.kill()  # also through the small journal files
    await running.restart()
    assert await count(running.uri) == 3


async def test_the_log_is_bounded(shared: server.Server) -> None:
    log = shared.data_dir / "mongodb/mongod0.log"
    for _ in range(2):
        shared._members[0].rotate_log(limit_bytes=-1)

        def anew() -> bool:
            shared._members[0].rotate_log()  # mongod may have missed the signal: the next turn repeats it
            return log.exists()

        await eventually(anew)
    await write(shared.uri, a=1)
    assert {p.name for p in log.parent.glob("mongod0.*")} == {"mongod0.log", "mongod0.log.1", "mongod0.out"}


# One owner


async def test_a_second_start_names_the_owner_of_the_data(owner: Callable[..., Owner], data_dir: Path) -> None:
    holder = owner()
    up = await holder.until("up")
    with pytest.raises(server.DataDirInUse, match=rf"process {holder.process.pid} \(`owner\.py .*since 20.*--data-dir"):
        await server.start(data_dir)
    await write(up["uri"], a=1)


async def test_attach_finds_a_running_server_only(start: Start, data_dir: Path) -> None:
    assert await server.attach(data_dir) is None
    assert list(data_dir.parent.iterdir()) == []
    running = await start()
    assert await server.attach(data_dir) == running.uri
    assert await server.find(data_dir) == running.endpoint
    await running.kill()
    assert await server.attach(data_dir) is None
    await running.stop()
    assert await server.attach(data_dir) is None


async def test_attach_does_not_block_a_start(start: Start, data_dir: Path) -> None:
    enough = asyncio.Event()

    async def ask() -> None:
        while not enough.is_set():
            await server.attach(data_dir)
            await asyncio.sleep(0.001)

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    try:
        running = await start()
    finally:
        enough.set()
        await asyncio.gather(*asking)
    assert await server.attach(data_dir) == running.uri


async def test_commands_share_the_server_that_one_of_them_started(data_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "visitor.py"
    script.write_text(VISITOR)
    visitors = [await asyncio.create_subprocess_exec(sys.executable, script, data_dir, str(i)) for i in range(3)]
    assert [await v.wait() for v in visitors] == [0, 0, 0]
    assert await server.attach(data_dir) is None
    async with server.running(data_dir) as uri, AsyncMongoClient[dict[str, Any]](uri) as client:
        assert await client.t.visits.count_documents({}) == 150


async def test_the_server_outlives_the_command_that_started_it_while_others_use_it(data_dir: Path) -> None:
    started, enough, waits = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with server.running(data_dir, log=lambda event, **_: event == "mongod.visitors" and waits.set()):
            started.set()
            await enough.wait()

    owning = asyncio.create_task(first())
    await started.wait()
    async with server.running(data_dir) as uri:
        enough.set()
        await waits.wait()
        await write(uri, a=1)
        assert not owning.done()
    await owning
    assert await server.attach(data_dir) is None


# Processes that die


async def test_a_killed_owner_takes_its_mongod_along(owner: Callable[..., Owner], start: Start, data_dir: Path) -> None:
    holder = owner(children=True)
    children = (await holder.until("children"))["pids"]
    up = await holder.until("up")
    await write(up["uri"], a=1)
    await holder.kill()
    try:
        running = await start()  # waits until the other has ended
        assert all(map(alive, children)), "the children must outlive it for this to prove anything"
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not any(map(alive, up["pids"] + up["supervisors"])))
    assert await count(running.uri) == 1


async def test_a_killed_mongod_loses_nothing_acknowledged(start: Start) -> None:
    running = await start()
    acknowledged: list[int] = []

    async def writing(client: AsyncMongoClient[dict[str, Any]], worker: int) -> None:
        with contextlib.suppress(PyMongoError):
            for i in range(100_000):
                await client.t.things.insert_one({"_id": worker * 100_000 + i})
                acknowledged.append(worker * 100_000 + i)

    async with AsyncMongoClient[dict[str, Any]](running.uri, retryWrites=False) as client:
        writers = [asyncio.create_task(writing(client, w)) for w in range(8)]
        await eventually(lambda: len(acknowledged) >= 500)
        os.kill(running.pids[0], signal.SIGKILL)
        assert await running.wait() == 137
        assert "killed" in str(running.why())
        await asyncio.gather(*writers)
        await running.restart()
        assert running.why() is None
        assert set(acknowledged) <= {d["_id"] async for d in client.t.things.find({})}  # this client recovered too
        await client.t.things.insert_one({})


async def test_a_mongod_that_outlived_its_supervisor_is_ended(owner: Callable[..., Owner], start: Start) -> None:
    holder = owner()
    up = await holder.until("up")
    await write(up["uri"], a=1)
    for pid in in_session(up["supervisors"][0]) - {up["pids"][0]}:
        os.kill(pid, signal.SIGKILL)
    await holder.kill()
    assert alive(up["pids"][0])
    events: list[str] = []
    running = await start(log=lambda event, **_: events.append(event))
    assert "mongod.stray" in events
    assert not alive(up["pids"][0])
    assert await count(running.uri) == 1


async def test_an_unexpected_exit_is_noticed_and_repaired(start: Start) -> None:
    running = await start()
    os.kill(running.pids[0], signal.SIGTERM)
    assert await running.wait() == 0
    assert "shut down by another program" in str(running.why())
    await running.restart()

    (stray,) = running.pids
    os.kill(os.getsid(stray), signal.SIGKILL)  # its supervisor
    await running.wait()
    await running.restart()
    assert not alive(stray)
    await write(running.uri, a=1)


async def test_ctrl_c_does_not_reach_mongod(owner: Callable[..., Owner]) -> None:
    holder = owner()
    up = await holder.until("up")
    os.killpg(holder.process.pid, signal.SIGINT)
    await holder.until("interrupted")
    await write(up["uri"], a=1)
    assert all(map(alive, up["pids"] + up["supervisors"]))


@pytest.mark.parametrize(
    ("moment", "everything"),
    [
        pytest.param("mongod.spawned", False, marks=pytest.mark.soak),
        ("mongod.listening", True),
        ("mongod.initiated", False),
        pytest.param("mongod.initiated", True, marks=pytest.mark.soak),
        ("mongod.user", True),
        ("mongod.primary", True),
    ],
)
async def test_an_interrupted_first_start_is_completed_by_the_next(
    owner: Callable[..., Owner], start: Start, moment: str, everything: bool
) -> None:
    holder = owner(die_at=moment, all=everything)
    with pytest.raises(AssertionError):
        await holder.until("up")
    assert holder.seen[-1]["event"] == moment
    await holder.dead()
    running = await start()
    await write(running.uri, a=1)
    assert await count(running.admin_uri) == 1


async def test_three_members_elect_another_primary(start: Start) -> None:
    running = await start(replicas=3)
    async with AsyncMongoClient[dict[str, Any]](running.uri, serverSelectionTimeoutMS=20_000) as client:
        await client.t.things.insert_one({"_id": 0})
        primary = await client.primary
        assert primary
        killed = running.ports.index(primary[1])
        await running.kill(killed)
        await client.t.things.insert_one({"_id": 1})
        assert await client.primary != primary
        await running.restart()
        async with asyncio.timeout(20):
            while True:
                status = await client.admin.command("replSetGetStatus")
                if sorted(m["stateStr"] for m in status["members"]) == ["PRIMARY", "SECONDARY", "SECONDARY"]:
                    break
                await asyncio.sleep(0.05)
        assert await client.t.things.count_documents({}) == 2
    with pytest.raises(server.DataDirUnusable, match="as many as it has"):
        await server.start(running.data_dir)


# Ports


async def test_a_taken_port_is_replaced_by_another_permanently(start: Start, owner: Callable[..., Owner]) -> None:
    first = await start()
    await write(first.uri, a=1)
    await first.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", first.ports[0]))
        squatter.listen()
        interrupted = owner(die_at="mongod.moved", all=True)
        with pytest.raises(AssertionError):
            await interrupted.until("up")
        await interrupted.dead()
        second = await start()
        assert second.ports != first.ports
        assert await count(second.uri) == 1
        await second.stop()
    third = await start()
    assert third.ports == second.ports


async def test_a_taken_port_that_was_requested_is_an_error(data_dir: Path, shared: server.Server) -> None:
    (port,) = shared.ports
    with pytest.raises(server.PortInUse, match=f"Port {port} is taken"):
        await server.start(data_dir, port=port)


async def test_a_port_taken_between_choice_and_use_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        free, choices = server._free_port, [taken]
        monkeypatch.setattr(server, "_free_port", lambda: choices.pop() if choices else free())
        events: list[str] = []
        running = await start(log=lambda event, **_: events.append(event))
        assert "mongod.retry" in events
        assert running.ports != (taken,)
        await write(running.uri, a=1)


# Missing and damaged files


async def test_lost_and_damaged_files_are_recreated(start: Start, data_dir: Path) -> None:
    first = await start()
    await write(first.uri, a=1)
    await first.kill()
    await first.stop()
    (data_dir / "mongodb/server.json").write_text('{"password": ')
    (data_dir / "mongodb/server.lock").unlink()
    (data_dir / "mongodb/keyfile").write_text("")
    second = await start()
    assert await count(second.uri) == 1
    with pytest.raises(OperationFailure):
        await count(first.uri.replace(str(first.ports[0]), str(second.ports[0])))


async def test_data_that_is_damaged_or_of_another_version_is_reported(start: Start, data_dir: Path) -> None:
    running = await start()
    await running.stop()
    turtle = data_dir / "mongodb/data0/WiredTiger.turtle"
    content = turtle.read_bytes()
    turtle.write_bytes(content.replace(b"version=(major=1,", b"version=(major=9,"))
    with pytest.raises(server.DataDirUnusable, match="another version of mongod"):
        await server.start(data_dir)
    turtle.write_bytes(content)
    with (data_dir / "mongodb/data0/_mdb_catalog.wt").open("r+b") as catalogue:
        catalogue.write(os.urandom(4096))
    with pytest.raises(server.DataDirUnusable, match="is damaged"):
        await server.start(data_dir)


async def test_an_unusable_data_directory_is_reported(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(server.DataDirUnusable, match="start with another --data-dir"):
            await server.start(path)
        assert await server.attach(path) is None
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(server.DataDirUnusable, match=f"belongs to another user .uid {uid}"):
        await server.start(data_dir)


async def test_a_cancelled_start_leaves_nothing(data_dir: Path) -> None:
    for moment in ("mongod.spawned", "mongod.initiated"):
        reached = asyncio.Event()
        starting = asyncio.create_task(
            server.start(data_dir, log=lambda e, m=moment, r=reached, **_: r.set() if e == m else None)
        )
        await reached.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert processes_naming(data_dir) == []


async def test_a_cache_too_small_is_refused(data_dir: Path) -> None:
    with pytest.raises(Invalid, match="256"):
        await server.start(data_dir, cache_mb=255)


async def test_no_value_of_a_slow_command_reaches_the_log_of_mongod(tmp_path: Path) -> None:
    """A logged command has its values: hashes of tokens, and addresses."""
    running = await server.start(tmp_path / "data")
    try:
        async with AsyncMongoClient(running.uri) as client:
            await client["ximler"]["people"].insert_one({"email": "secret@example.com"})
            slow = {"$where": "sleep(300) || true", "email": "secret@example.com"}
            await client["ximler"]["people"].find(slow).to_list()
    finally:
        await running.stop()
    logs = [path.read_text("utf-8", "replace") for path in (tmp_path / "data").rglob("*.log*")]
    assert any("Waiting for connections" in text for text in logs)
    assert not any("secret@example.com" in text for text in logs)
