"""The embedded server: a MongoDB replica set on this machine that lives as long as its owner.

Each data directory has one owner; other processes `attach`. A start repairs the state left by any
interruption: an unfinished first start, a mongod that outlived its supervisor, a taken port, lost passwords.
Bootstrapping authenticates as `__system` with the key file. MongoDB's localhost exception is disabled,
because any local user could use it first, and an interrupted start could not resume it.

Connections to your own server (MONGODB_URI) belong to `ximler.database`.
"""

import asyncio
import contextlib
import fcntl
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from pymongo import AsyncMongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from ximler.core.errors import Invalid
from ximler.embedded.data_dir import ADMIN, SET, USER, Claim, DataDir, Endpoint, Holder, hosts, lock
from ximler.embedded.mongod import (
    DataDirInUse,
    DataDirUnusable,
    DiskFull,
    EmbeddedServerError,
    Mongod,
    MongodMissing,
    MongodUnusable,
    PortInUse,
    disown,
    end_stray,
    find_mongod,
    unusable,
)

__all__ = [
    "DataDirInUse",
    "DataDirUnusable",
    "DiskFull",
    "EmbeddedServerError",
    "Endpoint",
    "MongodMissing",
    "MongodUnusable",
    "PortInUse",
    "Server",
    "attach",
    "find",
    "find_mongod",
    "running",
    "start",
]

Log = Callable[..., object]
Client = AsyncMongoClient[dict[str, Any]]

_ROLES = {ADMIN: ["root"], USER: ["readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor"]}
_ATTEMPTS = 5

# After a change of port a member looks for itself at its old address, and waits 30 s if another server
# listens there. This disables the check, for a run that only changes the ports.
_BLIND = ("--setParameter", "enableTestCommands=1", "--setParameter", "failpoint.failIsSelfCheck={mode: 'alwaysOn'}")
_NOT_YET_INITIALIZED, _ALREADY_INITIALIZED, _RECONFIGURING, _USER_EXISTS = 94, 23, 109, 51003


def _silent(_event: str, **_fields: object) -> None: ...


async def start(
    data_dir: Path,
    *,
    mongod: str | None = None,
    port: int | None = None,
    replicas: int = 1,
    cache_mb: int = 256,
    parameters: Mapping[str, str] | None = None,
    timeout_s: float = 120,
    log: Log = _silent,
) -> "Server":
    """Start the embedded server on `data_dir`, and return when it has a primary that takes writes.

    It runs until `stop`, or until this process ends. `port` is the first member's, the others follow; by
    default the previous ports are used if they are free. `cache_mb` is WiredTiger's cache per member,
    `parameters` are additional `--setParameter`s. `log` is called like structlog's `info`, with an event per
    phase and `ms` since the start. Raises EmbeddedServerError (DataDirInUse if another process owns the data
    directory), Invalid.
    """
    if cache_mb < 256:
        raise Invalid(f"A cache of {cache_mb} MB is too small: mongod accepts 256 or more")
    binary = find_mongod(mongod)
    directory = DataDir(data_dir)
    directory.prepare()
    try:
        directory.check(replicas)
        options = _options(directory.keyfile, cache_mb=cache_mb, parameters=parameters or {})
        server = Server(directory, await directory.claim(), binary, options, replicas, log)
        await server.begin(port, timeout_s)
    except OSError as error:
        raise unusable(error, directory.path) from error
    return server


async def find(data_dir: Path) -> Endpoint | None:
    """The running server of this data directory, or None."""
    directory = DataDir(data_dir)
    holder = directory.holder()
    if not (holder and holder.ready):
        return None
    with contextlib.suppress(PyMongoError, OSError):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", holder.ports[0]
        )  # fails at once; the driver tries for 5 s
        writer.close()
        async with _client(holder.ports[0]) as client:
            if (await client.admin.command("hello")).get("setName") == SET:
                return directory.load().endpoint(holder, directory.path)
    return None


async def attach(data_dir: Path) -> str | None:
    """The URI of the server that another process runs on this data directory, or None."""
    found = await find(data_dir)
    return found.uri if found else None


@asynccontextmanager
async def running(
    data_dir: Path, *, mongod: str | None = None, cache_mb: int = 256, log: Log = _silent
) -> AsyncIterator[str]:
    """The URI of the server on this data directory: the running one, or one started for the duration of the
    block.

    Concurrent processes share one server: one starts it, the others wait for it, and it stops after the last
    of them. Raises EmbeddedServerError.
    """
    directory = DataDir(data_dir)
    directory.prepare()
    visit = directory.visits()
    server: Server | None = None
    try:
        patience = time.monotonic() + 60
        while True:
            # The lock is refused while the running server is about to stop.
            if lock(visit, fcntl.LOCK_SH) and (uri := await attach(data_dir)):
                break
            try:
                server = await start(data_dir, mongod=mongod, cache_mb=cache_mb, log=log)
            except DataDirInUse:  # it is starting or stopping
                if time.monotonic() > patience:
                    raise
                await asyncio.sleep(0.05)
            else:
                uri = server.uri
                break
        yield uri
        if server and not lock(visit, fcntl.LOCK_EX):
            log("mongod.visitors")
            while not lock(visit, fcntl.LOCK_EX):  # noqa: ASYNC110 (held by other processes, without an event)
                await asyncio.sleep(0.05)
    finally:
        try:
            if server:
                await asyncio.shield(asyncio.create_task(server.stop()))
        finally:
            disown(visit)


class Server:
    """A running embedded server, from its owner's side. Made by `start`."""

    def __init__(
        self, directory: DataDir, claim: Claim, binary: Path, options: list[str], replicas: int, log: Log
    ) -> None:
        self._directory = directory
        self._claim = claim
        self._binary = binary
        self._options = options
        self._replicas = replicas
        self._log = log
        self._state = directory.load()
        self._holder = Holder.me()
        self._members: list[Mongod] = []
        self._began = time.perf_counter()
        self._changing = asyncio.Lock()  # serialises start, restart and stop
        self._tending: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def data_dir(self) -> Path:
        return self._directory.path

    @property
    def endpoint(self) -> Endpoint:
        return self._state.endpoint(self._holder, self.data_dir)

    @property
    def uri(self) -> str:
        """Credentials for Ximler and its commands:
        reads, writes, indexes and validators of every database."""
        return self.endpoint.uri

    @property
    def admin_uri(self) -> str:
        """Credentials with the role `root`: users, roles, replica set, fail points."""
        return self.endpoint.admin_uri

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(m.port for m in self._members)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of mongod, one per member."""
        return tuple(m.pid for m in self._members)

    async def wait(self) -> int:
        """Wait until any mongod ends; returns its exit status as in the shell (137: SIGKILL).

        Unless `stop` was called, `why` explains the exit and `restart` starts it again.
        """
        exits = [m.exited for m in self._members]
        await asyncio.wait(exits, return_when=asyncio.FIRST_COMPLETED)
        return next(e.result() for e in exits if e.done())

    def why(self) -> EmbeddedServerError | None:
        """The error of a mongod that has died; None while all run, and after `stop`."""
        if self._stopped:
            return None
        return next((m.cause() for m in self._members if m.exited.done()), None)

    async def kill(self, member: int = 0) -> None:
        """SIGKILL one mongod and wait for its end. For tests of failover."""
        self._members[member].kill()
        await asyncio.wait([self._members[member].exited])

    async def restart(self, *, timeout_s: float = 120) -> None:
        """Restart members that have died, on the same ports, so that clients reconnect.

        Returns when the replica set has a primary. Does nothing after `stop`. Raises EmbeddedServerError.
        """
        async with self._changing:
            if self._stopped:
                return
            self._began = time.perf_counter()
            try:
                async with asyncio.timeout(timeout_s):
                    for i, dead in enumerate(self._members):
                        if dead.exited.done():
                            await end_stray(dead.dbpath, self._log)
                            self._members[i] = await self._spawn(i, dead.port)
                    await self._while_alive(self._settle)
            except TimeoutError as error:
                raise self._too_slow(timeout_s) from error
            except OSError as error:
                raise unusable(error, self.data_dir) from error

    async def stop(self, *, timeout_s: float = 20) -> None:
        """Shut every mongod down cleanly and release the data directory.
        After the timeout they are killed."""
        self._stopped = True
        async with self._changing:
            if self._tending:
                self._tending.cancel()
            try:
                await self._halt(timeout_s)
            finally:
                self._claim.release()

    async def begin(self, port: int | None, timeout_s: float) -> None:
        """Called once, by `start`. Cleans up if it fails or is cancelled."""
        try:
            async with self._changing, asyncio.timeout(timeout_s):
                await self._begin(port)
        except BaseException as error:
            await asyncio.shield(asyncio.create_task(self.stop()))
            if isinstance(error, TimeoutError):
                raise self._too_slow(timeout_s) from error
            raise

    async def _begin(self, port: int | None) -> None:
        self._claim.publish(self._holder)
        self._key = await asyncio.to_thread(self._directory.key)
        for i in range(self._replicas):
            dbpath = self._directory.dbpath(i)
            dbpath.mkdir(mode=0o700, exist_ok=True)
            await end_stray(dbpath, self._log)
        for attempt in range(1, _ATTEMPTS + 1):
            ports = self._choose(port, fresh=attempt > 1)
            try:
                if await self._blocked(ports):
                    await self._bring_up(ports, self._move, _BLIND)
                    await self._halt()
                await self._bring_up(ports, self._settle)
            except (PortInUse, DataDirInUse) as error:
                # The port was taken since the check, or a stray mongod locked the data first.
                if attempt == _ATTEMPTS or (port and isinstance(error, PortInUse)):
                    raise
                self._log("mongod.retry", reason=error.message)
                await self._halt()
            else:
                self._tending = asyncio.create_task(self._tend())
                return

    async def _blocked(self, ports: list[int]) -> bool:
        """Whether members would look for themselves at ports where another server listens (see `_BLIND`)."""
        before = self._state.ports
        return tuple(ports) != before and any([await _accepts(p) for p in before])

    async def _bring_up(self, ports: list[int], until: Callable[[], Awaitable[None]], more: Sequence[str] = ()) -> None:
        self._members.clear()
        for i, port in enumerate(ports):
            self._members.append(await self._spawn(i, port, more))
        await self._while_alive(until)

    def _choose(self, port: int | None, *, fresh: bool) -> list[int]:
        """A port per member: the given ones, else the previous ones, else free ones."""
        if port:
            wanted = list(range(port, port + self._replicas))
            if taken := [p for p in wanted if not _is_free(p)]:
                raise PortInUse(f"Port {taken[0]} is taken by another program: let the database choose, or change it.")
            return wanted
        before = () if fresh else self._state.ports[: self._replicas]
        chosen = [p for p in before if _is_free(p)]
        if len(chosen) < self._replicas:  # all members move or none, to keep their order
            chosen = []
            while len(chosen) < self._replicas:
                if (candidate := _free_port()) not in chosen:
                    chosen.append(candidate)
        return chosen

    async def _spawn(self, i: int, port: int, more: Sequence[str] = ()) -> Mongod:
        dbpath, log_path = self._directory.dbpath(i), self._directory.log_path(i)
        options = [*self._options, *more]
        member = await Mongod.spawn(self._binary, options, dbpath=dbpath, log_path=log_path, port=port)
        self._phase("mongod.spawned", pid=member.pid, port=port)
        return member

    async def _halt(self, timeout_s: float = 20) -> None:
        for member in self._members:
            member.release()
        if exits := [m.exited for m in self._members]:
            _, late = await asyncio.wait(exits, timeout=timeout_s)
            for member in self._members:
                member.kill()
            if late:
                await asyncio.wait(late)
        for member in self._members:  # in case a supervisor was killed
            await end_stray(member.dbpath, self._log)

    async def _while_alive(self, until: Callable[[], Awaitable[None]]) -> None:
        """Run `until`. Raises the error of the first member that ends before it is done."""
        exits = [m.exited for m in self._members]
        done = asyncio.ensure_future(until())
        try:
            await asyncio.wait([done, *exits], return_when=asyncio.FIRST_COMPLETED)
            if done.done() and isinstance(done.exception(), ConnectionFailure):
                await asyncio.wait(exits, timeout=10, return_when=asyncio.FIRST_COMPLETED)  # let the exit be noticed
            if death := self.why():
                raise death
            await done
        except PyMongoError as error:
            raise EmbeddedServerError(
                f"mongod refused to form its replica set ({error}): its log is in {self._directory.home}."
            ) from error
        finally:
            done.cancel()
            await asyncio.gather(done, return_exceptions=True)

    async def _settle(self) -> None:
        """Turn the processes into a replica set with primary and users,
        with as few round trips as possible."""
        await asyncio.gather(*(m.listening() for m in self._members))
        self._phase("mongod.listening")
        if not await self._as_left():
            await self._heal()
        self._phase("mongod.primary")
        if self._state.ports != self.ports:
            self._state.ports = self.ports
            await self._save()
        self._holder = msgspec.structs.replace(self._holder, ports=self.ports, pids=self.pids, ready=True)
        self._claim.publish(self._holder)
        self._phase("mongod.ready")

    async def _as_left(self) -> bool:
        """If the configuration is unchanged since the last start, wait for the primary. Returns whether it
        is.
        """
        if not self._state.users_made:
            return False
        async with _client(self.ports[0]) as client:
            hello = await client.admin.command("hello")
            if not _members_are(self.ports, hello):
                return False
            await _primary(client, hello)
            return True

    async def _move(self) -> None:
        """Write the new ports into the configuration, with members started `_BLIND`."""
        await asyncio.gather(*(m.listening() for m in self._members))
        for member in self._members:
            async with _client(member.port, key=self._key) as client:
                await client.admin.command({"configureFailPoint": "failIsSelfCheck", "mode": "off"})
        async with _client(self.ports[0], key=self._key) as client:
            await self._configure(client)
        for member in self._members:
            async with _client(member.port) as client:
                while not _members_are(self.ports, await client.admin.command("hello")):  # noqa: ASYNC110 (the server's)
                    await asyncio.sleep(0.01)

    async def _heal(self) -> None:
        """Initiate the replica set or update its ports, and create its users. Idempotent."""
        async with _client(self.ports[0], key=self._key) as client:
            await self._configure(client)
            primary = await _primary(client, await client.admin.command("hello"))
        if self._state.users_made:
            return
        await self._save()  # store the passwords before the server has them
        async with _client(primary, key=self._key) as client:
            for user, password in ((ADMIN, self._state.admin_password), (USER, self._state.password)):
                account = {"pwd": password, "roles": _ROLES[user], "mechanisms": ["SCRAM-SHA-256"]}
                try:
                    await client.admin.command({"createUser": user, **account})
                except OperationFailure as error:
                    if error.code != _USER_EXISTS:
                        raise
                    await client.admin.command({"updateUser": user, **account})
                self._phase("mongod.user", user=user)
        self._state.users_made = True
        await self._save()

    async def _configure(self, client: Client) -> None:
        """Configure the replica set's members. Retries commands that are too early or interrupted by a state
        change.
        """
        wanted = hosts(self.ports)
        members = [{"_id": i, "host": host} for i, host in enumerate(wanted)]
        while True:
            with contextlib.suppress(ConnectionFailure):
                try:
                    config = (await client.admin.command("replSetGetConfig"))["config"]
                    if [m["host"] for m in config["members"]] != wanted:
                        config.update(members=members, version=config["version"] + 1)
                        # Forced, because a member on a new port is not in its own configuration.
                        await client.admin.command({"replSetReconfig": config, "force": True})
                        self._phase("mongod.moved")
                    return
                except OperationFailure as error:
                    if error.code not in (_NOT_YET_INITIALIZED, _RECONFIGURING):
                        raise
                    if error.code == _NOT_YET_INITIALIZED and await _initiate(client, members):
                        self._state.users_made = False
                        self._phase("mongod.initiated")
                        return
            await asyncio.sleep(0.01)

    async def _save(self) -> None:
        await asyncio.to_thread(self._directory.save, self._state)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(30)
            for member in self._members:
                with contextlib.suppress(OSError):
                    member.rotate_log()

    def _phase(self, event: str, **fields: object) -> None:
        self._log(event, ms=round((time.perf_counter() - self._began) * 1000), **fields)

    def _too_slow(self, timeout_s: float) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"mongod was not ready after {timeout_s:.0f} s: its log is in {self._directory.home}."
        )


def _options(keyfile: Path, *, cache_mb: int, parameters: Mapping[str, str]) -> list[str]:
    # A document of the maximum size (16 MB) makes 50 MB of dirty cache with its oplog entry. The default
    # limit is 20 % of the cache, so below 1 GB such a write always fails with code 388. Journal files of 100
    # MB (three, written at every start) would slow a warm start by 0.7 s.
    engine = "log=(file_max=16MB)" + (",eviction_dirty_trigger=50" if cache_mb < 1024 else "")
    all_parameters = {
        "diagnosticDataCollectionEnabled": "false",
        "enableLocalhostAuthBypass": "false",
        "scramSHA256IterationCount": "5000",  # passwords are random: more iterations only slow connecting
        "shutdownTimeoutMillisForSignaledShutdown": "100",  # otherwise a secondary waits 15 s for its clients
        **parameters,
    }
    options = [
        *("--replSet", SET),
        *("--bind_ip", "127.0.0.1"),
        "--nounixsocket",
        *("--keyFile", str(keyfile)),
        *("--networkMessageCompressors", "disabled"),  # 6.0.5 predates the fix of CVE-2025-14847 (zlib)
        *("--wiredTigerCacheSizeGB", f"{cache_mb / 1024:.4f}"),
        *("--wiredTigerEngineConfigString", engine),
        *("--oplogSize", "1024"),
        *("--slowms", "2000000000"),  # a logged command has its values: hashes of tokens, addresses
        "--quiet",
    ]
    for name, value in all_parameters.items():
        options += ["--setParameter", f"{name}={value}"]
    return options


def _free_port() -> int:
    """A port that is free now. If it is taken before mongod binds it, the start is retried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores TIME_WAIT, as mongod does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _client(port: int, *, key: str | None = None) -> Client:
    """A client of one member in any state; with `key`, authenticated as another member."""
    options: dict[str, Any] = {"directConnection": True, "serverSelectionTimeoutMS": 5000}
    if key:
        options |= {"username": "__system", "password": key, "authSource": "local", "authMechanism": "SCRAM-SHA-256"}
    return AsyncMongoClient("127.0.0.1", port, **options)


async def _initiate(client: Client, members: list[dict[str, Any]]) -> bool:
    # Sets with several members serve tests of failover: they elect a primary within about a second.
    settings = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 300} if len(members) > 1 else {}
    try:
        await client.admin.command({"replSetInitiate": {"_id": SET, "members": members, "settings": settings}})
    except OperationFailure as error:
        if error.code != _ALREADY_INITIALIZED:
            raise
        return False  # the member had not read its configuration yet
    return True


def _members_are(ports: tuple[int, ...], hello: Mapping[str, Any]) -> bool:
    return sorted(hello.get("hosts", ())) == sorted(hosts(ports))


async def _accepts(port: int) -> bool:
    try:
        async with asyncio.timeout(0.5):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except TimeoutError:
        return True  # a server that is too busy to accept
    except OSError:
        return False
    writer.close()
    return True


async def _primary(client: Client, hello: Mapping[str, Any]) -> int:
    """Wait for a primary and return its port. The server responds as soon as its own state changes."""
    while not (hello.get("isWritablePrimary") or hello.get("primary", hello.get("me")) != hello.get("me")):
        # The election of another member does not trigger a response, so wait at most 100 ms.
        hello = await client.admin.command("hello", topologyVersion=hello["topologyVersion"], maxAwaitTimeMS=100)
    if hello.get("isWritablePrimary"):
        return int(hello["me"].rpartition(":")[2])
    port = int(hello["primary"].rpartition(":")[2])
    async with _client(port) as other:
        return await _primary(other, await other.admin.command("hello"))
