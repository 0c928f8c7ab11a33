"""Parts of a process: one that fails is started again, one with a lease runs once, and stopping ends them
all.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
import structlog
from bson import ObjectId
from tests.database.following import until
from tests.failing import UNMAPPED, Failing

from ximler.accounts.keyring import Keyring
from ximler.accounts.session_authentication import SessionAuthenticator
from ximler.apikeys.verification import Verifier
from ximler.audit.keys import SealKeys, new_key
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.metering.quota.meter import Meter
from ximler.metering.quota.tally import Tally
from ximler.notifications.email import mailer
from ximler.runtime import Part, Runtime, Shutdown, Stage
from ximler.schema.quota import Quota
from ximler.worker import Tools, background_parts

Loop = Callable[[asyncio.Event], Awaitable[object]]


@asynccontextmanager
async def running(*parts: Part, database: Database | None = None, drain_s: float = 2) -> AsyncIterator[Runtime]:
    runtime = Runtime(parts, database=database, shutdown=Shutdown(drain_s))
    runtime.start()
    try:
        yield runtime
    finally:
        await runtime.close()


async def idle(stop: asyncio.Event) -> None:
    await pause(stop, None)


async def test_a_part_that_fails_is_logged_shown_and_started_again() -> None:
    runs = 0

    async def part(stop: asyncio.Event) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ZeroDivisionError
        await pause(stop, None)

    with structlog.testing.capture_logs() as logs:
        async with running(Part("broken", part), Part("sound", idle)) as runtime:
            await until(lambda: runs == 2)
            assert runtime.failing == ["broken"]
    assert [entry["part"] for entry in logs if entry["event"] == "part failed"] == ["broken"]


async def test_a_part_that_recovers_is_no_longer_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ximler.runtime._WELL_AFTER_S", 0.05)
    runs = 0

    async def part(stop: asyncio.Event) -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            await pause(stop, None)

    async with running(Part("ends unasked", part)) as runtime:
        await until(lambda: runtime.failing)
        await until(lambda: runs == 2 and not runtime.failing)


async def test_a_part_with_a_lease_runs_in_one_process_and_moves_when_that_stops(database: Database) -> None:
    at_work: list[str] = []

    def part(name: str) -> Part:
        async def run(stop: asyncio.Event) -> None:
            at_work.append(name)
            await pause(stop, None)
            at_work.remove(name)

        return Part("test.single", run, lease=True)

    async with running(part("other"), database=database), running(part("one"), database=database):
        await until(lambda: at_work)
        await asyncio.sleep(0.3)
        assert len(at_work) == 1
    async with running(part("next"), database=database):
        await until(lambda: at_work == ["next"])
    assert at_work == []


async def test_stages_stop_in_order_and_close_after_their_loops() -> None:
    said: list[str] = []

    def part(name: str, stage: Stage) -> Part:
        async def run(stop: asyncio.Event) -> None:
            await pause(stop, None)
            said.append(f"{name} ends")

        async def close() -> None:
            said.append(f"{name} closes")

        return Part(name, run, close, stage)

    async with running(part("feed", Stage.FEED), part("work", Stage.WORK), part("meter", Stage.SERVE)):
        await asyncio.sleep(0)
    assert said == ["work ends", "work closes", "meter ends", "meter closes", "feed ends", "feed closes"]


async def test_a_part_that_does_not_stop_is_cancelled_until_it_is_over_and_the_others_still_close() -> None:
    swallowed, closed = 0, False

    async def deaf(stop: asyncio.Event) -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1

    async def close() -> None:
        nonlocal closed
        closed = True

    async with asyncio.timeout(6):
        async with running(Part("deaf", deaf), Part("meter", idle, close, Stage.SERVE), drain_s=0.2):
            await asyncio.sleep(0)
    assert swallowed == 2
    assert closed


# Every loop of the product lives through an error of the server that nothing maps.

REQUESTS = {"change feed", "API keys", "sessions", "meter"}
WORK = {
    "audit.sealer", "billing.events", "metering.changes", "metering.check", "metering.follower", "metering.reaper",
    "metering.settler", "projects.canvas", "scheduler", "worker",
}  # fmt: skip
COMMANDS = ("find", "aggregate", "update", "insert", "findAndModify", "getMore", "bulkWrite")


@pytest.fixture
def tools(database: Database, settings: Settings) -> Iterator[Tools]:
    made = _tools(database, settings)
    yield made
    made.keyring.close()


def _tools(database: Database, settings: Settings) -> Tools:
    return Tools(
        database=database,
        settings=settings,
        keyring=Keyring(settings),
        mailer=mailer(settings),
        seal_keys=SealKeys.parse(new_key()),
        feed=Feed(database),
    )


def loops(tools: Tools) -> dict[str, Loop]:
    """Every loop of a process, those of requests with something to do."""
    assert tools.feed is not None
    verifier = Verifier(tools.database, tools.feed)
    verifier._used.add(ObjectId())
    authenticator = SessionAuthenticator(tools.database, tools.keyring, tools.settings, tools.feed)
    authenticator._used[b"used"] = SimpleNamespace(id=b"used", ends_at=None)  # type: ignore[assignment]  # as much as is read
    meter, user_id, now = Meter(tools.database), ObjectId(), tools.database.clock.now()
    period = {"period_start": now - timedelta(days=1), "period_end": now + timedelta(days=1)}
    quota = Quota(id="q", user_id=user_id, resource="apiCalls", limit=10, opened=True, **period)
    meter._tallies[user_id] = Tally(quota, "process", tools.database.clock.now_ms())
    meter._tallies[user_id].wanted = True
    of_requests = (tools.feed.run, verifier.run, authenticator.run, meter.run)
    found: dict[str, Loop] = dict(zip(("change feed", "API keys", "sessions", "meter"), of_requests, strict=True))
    found |= {part.name: part.run for part in background_parts(tools)}
    others = found["projects.canvas"].__self__  # type: ignore[attr-defined]  # its loop is a method
    others._written.add(ObjectId())
    others._heard_of.set()
    return found


def test_the_loops_are_all_there(tools: Tools) -> None:
    assert {part.name for part in background_parts(tools)} == WORK


@pytest.mark.parametrize("code", UNMAPPED[::3])
@pytest.mark.parametrize("name", sorted(REQUESTS | WORK))
async def test_a_loop_lives_through_any_error_of_the_server(
    failing: Failing, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    monkeypatch.setattr("ximler.audit.sealing.EVERY_S", 0.05)
    monkeypatch.setattr("ximler.apikeys.verification._WRITE_USED_EVERY_S", 0.05)
    monkeypatch.setattr("ximler.accounts.session_authentication._WRITE_EVERY_S", 0.05)
    monkeypatch.setattr("ximler.runtime._FIRST_RESTART_S", 0.05)
    tools = _tools(failing.database, settings)
    began = ended = 0
    loop = loops(tools)[name]

    async def counted(stop: asyncio.Event) -> None:
        nonlocal began, ended
        began += 1
        try:
            await loop(stop)
        finally:
            ended += 1

    feed = tools.feed
    assert feed is not None
    for callback in feed._gap_callbacks:  # as the feed does when it begins
        callback()
    async with failing.fail(*COMMANDS, errorCode=code) as hits, running(Part(name, counted)):
        async with asyncio.timeout(20):
            while not await hits() or began == ended:  # noqa: ASYNC110 (polls a counter of the server)
                await asyncio.sleep(0.02)
    tools.keyring.close()
