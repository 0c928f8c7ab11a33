"""The watchdog is a thread: it ends a process whose event loop is blocked, and logs the stacks."""

import json
import signal
import subprocess
import sys
import time

import pytest

BLOCKED = """
import asyncio, time
from ximler.core import logs
from ximler.core.settings import Settings
from ximler.runtime import Shutdown

logs.configure(Settings(log_format="json"))

def blocks_the_loop():
    {block}

async def main():
    shutdown = Shutdown(0, grace_s=0.5)
    shutdown.listen()
    asyncio.create_task(asyncio.sleep(60), name="a pending task")
    await asyncio.sleep(0)
    print("blocked", flush=True)
    blocks_the_loop()

asyncio.run(main())
"""


@pytest.mark.parametrize("block", ["time.sleep(60)", "while True: pass"])
def test_a_process_whose_loop_is_blocked_is_ended_and_says_where(block: str) -> None:
    code = BLOCKED.format(block=block)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert 0.5 <= time.monotonic() - began < 10
    assert process.returncode == 70
    line = next(json.loads(line) for line in said.splitlines() if "process hangs" in line)
    assert any("blocks_the_loop" in frame for frames in line["threads"].values() for frame in frames)
    assert "a pending task" in line["tasks"]
