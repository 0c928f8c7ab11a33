"""Real processes: the command as a user types it, and a running `ximler up` to talk to."""

import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from ximler.database import Database

Ximler = Callable[..., "subprocess.CompletedProcess[str]"]
Own = tuple[dict[str, str], Any]
_PLAIN = {key: value for key, value in os.environ.items() if not key.startswith(("XIMLER_", "MONGODB_"))}


def _environment(uri: str, name: str) -> dict[str, str]:
    return {
        "MONGODB_URI": uri,
        "XIMLER_DATABASE": name,
        "XIMLER_SECRET_KEY": "k" * 32,
        "XIMLER_ARGON2_MEMORY_KIB": "7168",
        "XIMLER_LOG_LEVEL": "error",
    }


@pytest.fixture
def own(mongodb_uri: str, database: Database) -> Iterator[Own]:
    """Environment for the test's `database`, initialised and seeded, and the database."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(mongodb_uri) as client:
        yield _environment(mongodb_uri, database.name), client[database.name]


@pytest.fixture
def empty(mongodb_uri: str) -> Iterator[Own]:
    """Environment for a database that nothing has initialised, and the database."""
    name = f"ximler_test_cli_{secrets.token_hex(4)}"
    client: MongoClient[dict[str, Any]]
    with MongoClient(mongodb_uri) as client:
        yield _environment(mongodb_uri, name), client[name]
        client.drop_database(name)


class Forking:
    """The process that forks for each command; it starts with the first."""

    def __init__(self, folder: Path) -> None:
        self._files = [str(folder / name) for name in ("stdin", "stdout", "stderr")]
        theirs_in, tasks = os.pipe()
        answers, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py")), str(theirs_in), str(theirs_out)],
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._tasks, self._answers = os.fdopen(tasks, "w"), os.fdopen(answers)

    def run(self, arguments: list[str], env: dict[str, str], stdin: str) -> "subprocess.CompletedProcess[str]":
        Path(self._files[0]).write_text(stdin)
        print(json.dumps({"arguments": arguments, "env": env, "files": self._files}), file=self._tasks, flush=True)
        if not select.select([self._answers], [], [], 60)[0]:
            raise subprocess.TimeoutExpired(arguments, 60)
        code = int(self._answers.readline())
        return subprocess.CompletedProcess(arguments, code, *(Path(file).read_text() for file in self._files[1:]))

    def close(self) -> None:
        self._tasks.close()
        self._answers.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)


@pytest.fixture(scope="session")
def _forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forking]:
    forking = Forking(tmp_path_factory.mktemp("command"))
    yield forking
    forking.close()


@pytest.fixture
def ximler(tmp_path: Path, _forking: Forking) -> Ximler:
    """Run a command with only the given variables of Ximler in its environment."""

    def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        env = {**_PLAIN, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), **(env or {})}
        if arguments[0] != "up":
            return _forking.run(list(arguments), env, stdin)
        command = [sys.executable, "-m", "ximler", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, env=env)

    return run


class Up:
    """A running `ximler up`, in a process group of its own."""

    def __init__(self, data_dir: Path, *arguments: str, env: dict[str, str]) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ximler", "up", "--port", "0", "--data-dir", str(data_dir), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**_PLAIN, **env},
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            found = self.wait_for(r"GraphQL +(http://\S+)/graphql", timeout_s=120)  # a busy machine takes half a minute
        except BaseException:
            os.killpg(self.process.pid, signal.SIGKILL)  # its database and web processes end with it
            self.process.wait()
            raise
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, pattern: str, *, timeout_s: float = 30, after: int = 0) -> re.Match[str]:
        """A line of its output, from line `after` on."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in self.lines[after:]:
                if found := re.search(pattern, line):
                    return found
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {pattern!r} in: {''.join(self.lines)}")

    def query(self, text: str, *, token: str | None = None, **variables: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self.client.post("/graphql", json={"query": text, "variables": variables}, headers=headers)
        return answer.json()

    def mongod(self) -> int:
        """The process id of its database."""
        for line in subprocess.run(
            ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True
        ).stdout.splitlines():
            pid, _, command = line.strip().partition(" ")
            if f"--dbpath {self.data_dir}/" in command and not command.lstrip().startswith("/bin/sh"):
                return int(pid)
        raise AssertionError("no mongod runs on it")

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                self.process.wait(10)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.client.close()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `ximler up` on a data folder of the test's own; all are stopped after it."""
    running: list[Up] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Up:
        data_dir = tmp_path / "data"
        cheap = {"XIMLER_ARGON2_MEMORY_KIB": "7168", "XIMLER_ARGON2_TIME_COST": "1"}
        started = Up(data_dir, *arguments, env={**cheap, **(env or {})})
        running.append(started)
        return started

    yield start
    for one in running:
        one.close()


def json_of(result: "subprocess.CompletedProcess[str]") -> Any:
    assert result.stderr == "" or "error" not in result.stderr, result.stderr
    return json.loads(result.stdout)


def gone(pid: int, *, timeout_s: float = 30) -> bool:
    """Whether the process ends in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.02)
    return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
