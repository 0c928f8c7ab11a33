"""The data directory of the embedded server: files, locks and owner.

Everything is below `<data directory>/mongodb`, which only its user may read:

    server.lock     locked by the owner, and describes it
    visitors.lock   shared by processes that use the owner's server
    server.json     passwords and ports
    keyfile         the members' shared secret
    data0, …        data of each member
    mongod0.log     mongod's log (bounded)

Locks are flocks, which end with their process. Only `data0` is needed to read the data; all other files are
recreated.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from ximler.embedded.mongod import DataDirInUse, DataDirUnusable, DiskFull, disown, own, unusable

__all__ = ["ADMIN", "SET", "USER", "Claim", "DataDir", "Endpoint", "Holder", "State", "hosts", "lock"]

SET = "ximler"
USER = "ximler"
ADMIN = "admin"
_MIN_FREE_BYTES = 100_000_000


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Address of a running embedded server. `uri` and `admin_uri` contain passwords."""

    uri: str
    admin_uri: str
    ports: tuple[int, ...]
    pids: tuple[int, ...]
    data_dir: Path

    def __repr__(self) -> str:
        return f"Endpoint(ports={self.ports}, pids={self.pids}, data_dir={str(self.data_dir)!r})"


class State(msgspec.Struct):
    """State across runs. If lost or damaged, it is recreated: without `users_made` the passwords are set
    again.
    """

    password: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(32))
    admin_password: str = msgspec.field(default_factory=lambda: secrets.token_urlsafe(32))
    ports: tuple[int, ...] = ()
    users_made: bool = False

    def endpoint(self, holder: "Holder", data_dir: Path) -> Endpoint:
        addresses = ",".join(hosts(holder.ports))
        tail = f"@{addresses}/?replicaSet={SET}&authSource=admin"
        return Endpoint(
            uri=f"mongodb://{USER}:{self.password}{tail}",
            admin_uri=f"mongodb://{ADMIN}:{self.admin_password}{tail}",
            ports=holder.ports,
            pids=holder.pids,
            data_dir=data_dir,
        )


class Holder(msgspec.Struct, frozen=True):
    """The owner of the data directory, as written to `server.lock`. Valid while the file is locked."""

    pid: int
    command: str
    since: str
    ports: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()
    ready: bool = False

    @classmethod
    def me(cls) -> Self:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).strip()
        return cls(os.getpid(), command[:120], datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))


class Claim:
    """The owner's lock on a data directory."""

    def __init__(self, fd: int) -> None:
        self._fd = own(fd)

    def publish(self, holder: Holder) -> None:
        text = msgspec.json.encode(holder)
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def release(self) -> None:
        disown(self._fd)


class DataDir:
    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.home = self.path / "mongodb"
        self.keyfile = self.home / "keyfile"
        self._state = self.home / "server.json"

    def dbpath(self, member: int) -> Path:
        return self.home / f"data{member}"

    def log_path(self, member: int) -> Path:
        return self.home / f"mongod{member}.log"

    def prepare(self) -> None:
        """Create the directory, accessible to this user only. An existing directory keeps its permissions,
        except `mongodb` in it. Raises DataDirUnusable.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
            if (owner := self.home.stat().st_uid) != os.geteuid():
                raise DataDirUnusable(
                    f"The data directory {self.path} belongs to another user (uid {owner}): run as that user, or start "
                    "with another --data-dir."
                )
            self.home.chmod(0o700)
        except OSError as error:
            raise unusable(error, self.path) from error

    def check(self, replicas: int) -> None:
        """Raises DataDirUnusable if there is data of more than `replicas` members, DiskFull."""
        if self.dbpath(replicas).exists():
            raise DataDirUnusable(f"{self.path} holds more than {replicas} replicas: start it with as many as it has.")
        if shutil.disk_usage(self.home).free < _MIN_FREE_BYTES:
            raise DiskFull(f"The disk that holds {self.path} has less than 100 MB left: free some and start again.")

    def key(self) -> str:
        """The members' shared secret, created on first use."""
        with contextlib.suppress(FileNotFoundError):
            self.keyfile.chmod(0o600)
            if len(key := self.keyfile.read_text()) == 128:
                return key
        key = secrets.token_hex(64)
        _write(self.keyfile, key.encode())
        return key

    def load(self) -> State:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except (FileNotFoundError, msgspec.DecodeError):
            return State()

    def save(self, state: State) -> None:
        _write(self._state, msgspec.json.encode(state))

    async def claim(self) -> Claim:
        """Become the owner. Raises DataDirInUse, which names the current owner."""
        fd = os.open(self.home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # `holder` takes the lock for microseconds to test it: hence several attempts.
            for _ in range(20):
                if lock(fd, fcntl.LOCK_EX):
                    return Claim(fd)
                await asyncio.sleep(0.01)
            holder = _read(fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        who = f"process {holder.pid} (`{holder.command}`) since {holder.since}" if holder else "another process"
        raise DataDirInUse(
            f"The data directory {self.path} is in use by {who}: `ximler db`, `users` and `shell` attach to it by "
            "themselves; to start a second server, give it another --data-dir."
        )

    def holder(self) -> Holder | None:
        """The current owner; None if there is none or it has not written its description yet."""
        try:
            fd = os.open(self.home / "server.lock", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unusable(error, self.path) from error
        try:
            return None if lock(fd, fcntl.LOCK_SH) else _read(fd)
        finally:
            os.close(fd)

    def visits(self) -> int:
        """An open file for `lock`, held shared while using another owner's server. Close it with `disown`."""
        return own(os.open(self.home / "visitors.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def hosts(ports: tuple[int, ...]) -> list[str]:
    return [f"127.0.0.1:{port}" for port in ports]


def lock(fd: int, kind: int) -> bool:
    """Try to take the lock (LOCK_SH, LOCK_EX); returns whether it succeeded."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(fd, 4096, 0), type=Holder)
    except msgspec.DecodeError:  # a write is in progress
        return None


def _write(path: Path, content: bytes) -> None:
    """Atomic and durable, readable by this user only. Only the owner writes."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
