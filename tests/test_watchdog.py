"""The watchdog is a thread: it ends a process whose event loop is blocked, and logs the stacks."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

BLOCKED = """
import asyncio, time
from ximler.cli.serving import end_with_parent
from ximler.core import logs
from ximler.core.settings import Settings
from ximler.runtime import Shutdown

logs.configure(Settings(log_format="json"))

def blocks_the_loop():
    {block}

async def main():
    shutdown = Shutdown(0, grace_s=0.5)
    shutdown.listen()
    end_with_parent(shutdown)
    asyncio.create_task(asyncio.sleep(60), name="a pending task")
    await asyncio.sleep(0)
    print("blocked", flush=True)
    blocks_the_loop()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "ask"),
    [
        ("time.sleep(60)", lambda process: process.send_signal(signal.SIGTERM)),
        ("while True: pass", lambda process: process.send_signal(signal.SIGTERM)),
        ("while True: pass", lambda process: process.stdin.close()),  # as when the parent of a web process ends
    ],
    ids=["SIGTERM asleep", "SIGTERM busy", "the parent ends"],
)
def test_a_process_whose_loop_is_blocked_is_ended_and_says_where(block: str, ask: Callable[..., object]) -> None:
    command = [sys.executable, "-c", BLOCKED.format(block=block)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "blocked\n"
        began = time.monotonic()
        ask(process)
        said = process.stderr.read()
        assert process.wait(timeout=20) == 70
        assert 0.5 <= time.monotonic() - began < 10
    line = next(json.loads(line) for line in said.splitlines() if "process hangs" in line)
    assert any("blocks_the_loop" in frame for frames in line["threads"].values() for frame in frames)
    assert "a pending task" in line["tasks"]
