"""Ctrl-C and SIGTERM while `ximler up` starts: an exit code, no traceback, and no database left running."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import gone

UP = (sys.executable, "-m", "ximler", "up")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("XIMLER_", "MONGODB_"))}
    return own | more


def end(process: "subprocess.Popen[str]", number: signal.Signals) -> str:
    """Send the signal; returns what the process said. Its exit code is the signal's, as a shell counts."""
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    # Before it listens, SIGTERM ends a process by itself.
    assert process.returncode in (128 + number, -number), said
    assert "Traceback" not in said
    return said


@pytest.mark.slow
@SIGNALS
def test_a_signal_while_the_database_is_waited_for_ends_the_process(number: signal.Signals, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # a database that never answers
        deaf.settimeout(60)
        env = environment(
            MONGODB_URI=f"mongodb://127.0.0.1:{deaf.getsockname()[1]}/ximler",
            XIMLER_SERVER_SELECTION_TIMEOUT_MS="60000",
            XIMLER_SECRET_KEY="a secret key that is only for the tests",
            XIMLER_DATA_DIR=str(tmp_path),
        )
        process = subprocess.Popen([*UP, "--port", "0"], env=env, stderr=subprocess.PIPE, text=True)
        asked, _ = deaf.accept()
        with asked:
            began = time.monotonic()
            end(process, number)
            assert process.returncode == 128 + number
            assert time.monotonic() - began < 10


@pytest.mark.slow
@SIGNALS
def test_a_signal_while_the_database_starts_leaves_none_running(number: signal.Signals, tmp_path: Path) -> None:
    command = [*UP, "--port", "0", "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    mongod = None
    while mongod is None and process.poll() is None:
        mongod = mongod_of(tmp_path / "data")
    assert mongod is not None
    said = end(process, number)
    assert "is running" not in said
    assert gone(mongod)
    assert mongod_of(tmp_path / "data") is None


def mongod_of(data_dir: Path) -> int | None:
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        pid, _, command = line.strip().partition(" ")
        if f"--dbpath {data_dir}/" in command and not command.lstrip().startswith("/bin/sh"):
            return int(pid)
    return None
