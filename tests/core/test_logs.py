"""Logs escape text from clients."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.core.logs import printable


def test_control_characters_are_spelled_out() -> None:
    assert printable("/a\x1b[2J\r\nb\u202e\ud800é") == r"/a\x1b[2J\r\nb\u202e\ud800é"


def test_long_texts_are_cut() -> None:
    assert printable("x" * 60_000) == "x" * 199 + "…"
    assert printable("x" * 200) == "x" * 200


@pytest.mark.slow
@given(st.text(max_size=300))
def test_every_log_entry_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


LOGS = """
import structlog
from bson import ObjectId
from ximler.core import logs
from ximler.core.settings import Settings

logs.configure(Settings(log_format="json"))
oid = ObjectId("6b02cc3a1345f7068c5e95c5")
for value in ("half \\ud800", 2**70, oid, ValueError("no"), {oid: 1, "a": [1, None, 0.5]}, "a\\nb\\x1b[2J"):
    structlog.get_logger().error("seen", value=value)
"""

FAILS = """
import logging
import structlog
from ximler.core import logs
from ximler.core.settings import Settings

logs.configure(Settings(log_format="json"))

def recurse(depth, secret="a local variable"):
    return recurse(depth - 1) if depth else 1 / 0

for log in (structlog.get_logger(), logging.getLogger("a.library")):
    try:
        try:
            recurse(50)
        except ZeroDivisionError as error:
            raise ValueError("x" * 5000) from error
    except ValueError:
        log.exception("failed")
"""


@pytest.mark.slow
def test_every_log_entry_is_one_line_of_json() -> None:
    said = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, check=True, timeout=60).stderr
    lines = said.splitlines()
    oid = "ObjectId('6b02cc3a1345f7068c5e95c5')"
    shown = ["half \ud800", 2**70, oid, "ValueError('no')", {oid: 1, "a": [1, None, 0.5]}, "a\nb\x1b[2J"]
    assert [json.loads(line)["value"] for line in lines] == shown
    assert all(line.isprintable() for line in lines)


SOON = """
import asyncio
import sys
import structlog
from ximler.core import logs
from ximler.core.settings import Settings

class Written:
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        self.stream.write(f"{len(text.encode())}\\t{text}")
    def flush(self):
        self.stream.flush()

sys.stderr = Written(sys.stderr)
logs.configure(Settings(log_format="json"))
log = structlog.get_logger()

async def work():
    for number in range(30):
        logs.info_soon(log, "request", number=number, code="half \\ud800" if number == 7 else "€" * 67)
    await asyncio.sleep(0)
    logs.info_soon(log, "request", number=30)

asyncio.run(work())
"""


@pytest.mark.slow
def test_entries_of_one_turn_of_the_loop_are_written_together_and_none_is_lost() -> None:
    """In writes of at most 4 kB, which a shared pipe does not interleave with those of other processes."""
    said = subprocess.run([sys.executable, "-c", SOON], capture_output=True, text=True, check=True, timeout=60).stderr
    sizes = [int(line.partition("\t")[0]) for line in said.splitlines() if "\t" in line]
    lines = [json.loads(line.rpartition("\t")[2]) for line in said.splitlines()]
    assert [line["number"] for line in lines] == list(range(31))
    assert all(line["timestamp"].endswith("Z") and line["level"] == "info" for line in lines)
    assert len(sizes) == 4
    assert max(sizes) <= 4096


@pytest.mark.slow
def test_a_traceback_is_compact() -> None:
    """The last frames of the error and of its causes, without local variables, whoever logs it."""
    said = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, check=True, timeout=60).stderr
    ours, theirs = (json.loads(line) for line in said.splitlines())
    for line in (ours, theirs):
        raised, cause = line["exception"]
        assert (raised["type"], cause["type"], cause["message"]) == (
            "ValueError",
            "ZeroDivisionError",
            "division by zero",
        )
        assert len(raised["message"]) == 2000
        assert len(cause["frames"]) == 12
        assert cause["frames"][-1].endswith(" recurse")
    assert "a local variable" not in said
    assert len(said) < 2 * 4000
