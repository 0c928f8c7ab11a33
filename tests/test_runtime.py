"""Parts of a process: one that fails is started again, one with a lease runs once, and stopping ends them
all.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
import structlog
from bson import ObjectId
from tests.database.following import until
from tests.failing import UNMAPPED, Failing

from ximler.accounts import credentials
from ximler.accounts.keyring import Keyring
from ximler.app import serving_parts
from ximler.audit.keys import SealKeys, new_key
from ximler.core.settings import Settings
from ximler.core.stopping import pause
from ximler.core.streams import Streams
from ximler.database import Database, outbox
from ximler.database.changes import Change, Feed
from ximler.database.monitoring import round_trips
from ximler.http.authentication import Authentication
from ximler.metering.quota.meter import Meter
from ximler.metering.quota.tally import Tally
from ximler.notifications.email import mailer
from ximler.projects.patches import Saver
from ximler.runtime import Part, Runtime, Shutdown, Stage
from ximler.schema.job import OUTBOX
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


@pytest.mark.slow
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


# Every loop of the product lives through an error of the server that nothing maps,
# and does its work afterwards.

PARTS = (
    "analytics.follower",
    "audit.sealer", "authentication.keys", "authentication.sessions", "billing.events", "feed", "metering.changes",
    "metering.check", "metering.follower", "metering.reaper", "metering.settler", "meter", "projects.canvas",
    "projects.saver", "projects.versions", "scheduler", "worker",
)  # fmt: skip
COMMANDS = ("find", "aggregate", "update", "insert", "findAndModify", "getMore", "bulkWrite")


class Parts:
    """The parts of `ximler up`, with something to do."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.feed = feed = Feed(database)
        self.keyring = Keyring(settings)
        authentication = Authentication(database, self.keyring, settings, feed)
        self._keys, self._sessions = authentication._keys, authentication._sessions
        self._heard: list[Change] = []
        feed.subscribe(["projects"], self._heard.append)
        meter, now = Meter(database), database.clock.now()
        period = {"period_start": now - timedelta(days=1), "period_end": now + timedelta(days=1)}
        quota = Quota(id="q", user_id=ObjectId(), resource="apiCalls", limit=10, opened=True, **period)
        self._tally = meter._tallies[quota.user_id] = Tally(quota, "process", database.clock.now_ms())
        tools = Tools(
            database=database,
            settings=settings,
            keyring=self.keyring,
            mailer=mailer(settings),
            seal_keys=SealKeys.parse(new_key()),
            feed=feed,
        )
        saver = Saver(database, rest_s=0)
        self._edited = saver._known(ObjectId(), ObjectId())
        parts = [*serving_parts(feed, authentication, meter, saver, Streams()), *background_parts(tools)]
        self.run: dict[str, Loop] = {part.name: part.run for part in parts}
        self._canvases, self._versions, self._follower = (
            self.run[name].__self__  # type: ignore[attr-defined]  # their loops are methods
            for name in ("projects.canvas", "projects.versions", "metering.follower")
        )
        self.use()

    def use(self) -> None:
        """Have keys, sessions and a quota used, canvases edited and written, and report a gap,
        as a feed does first."""
        for callback in self.feed._gap_callbacks:
            callback()
        self._canvases._written.add(ObjectId())
        self._canvases._heard_of.set()
        self._versions._changed[ObjectId()] = False
        self._versions._heard_of.set()
        self._follower._subscriptions.add(ObjectId())
        self._follower._changed.set()
        self._tally.wanted = True
        self._edited.saved_at = 0.0
        self._keys._used.add(ObjectId())
        self._sessions._used[b"used"] = SimpleNamespace(id=b"used", ends_at=None)  # type: ignore[assignment]  # what is read

    async def give_work(self) -> None:
        self.use()
        await credentials.send_reset.enqueue(self.database, credentials.ResetRequested(email="nobody@example.com"))

    async def did_its_work(self, name: str) -> bool:
        """Whether what `give_work` gave this part is done.
        That of the others is to look, which their commands show."""
        match name:
            case "feed":
                if self.feed.fresh:  # writes of before are a gap
                    await self.database.raw.projects.insert_one({"userId": ObjectId(), "name": "heard of"})
                return bool(self._heard)
            case "authentication.keys":
                return not self._keys._used
            case "authentication.sessions":
                return not self._sessions._used
            case "projects.canvas":
                return not self._canvases._written
            case "projects.saver":
                return self._edited.saved_at is None
            case "projects.versions":
                return not self._versions._changed
            case "worker":
                waiting = {"kind": credentials.send_reset.name, "status": {"$in": ["PENDING", "RUNNING"]}}
                return not await self.database[OUTBOX].count(waiting)
            case "scheduler":
                kinds = [scheduled.kind.name for scheduled in outbox.SCHEDULES]
                return await self.database[OUTBOX].count({"kind": {"$in": kinds}}) == len(kinds)
        return True


async def test_these_are_the_parts(database: Database, settings: Settings) -> None:
    parts = Parts(database, settings)
    assert sorted(parts.run) == sorted([*PARTS, "streams"])  # which sends no commands
    parts.keyring.close()


def _rotated() -> list[tuple[str, int]]:
    """A third of the errors for each part: every error with some of the parts."""
    return [(name, code) for n, name in enumerate(PARTS) for code in UNMAPPED[n % 3 :: 3]]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), _rotated())
async def test_a_part_works_after_any_error_of_the_server(
    failing: Failing, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    await _fail_once(failing, settings, monkeypatch, name, code)


@pytest.mark.soak
@pytest.mark.parametrize("code", UNMAPPED)
@pytest.mark.parametrize("name", PARTS)
async def test_every_part_works_after_every_error_of_the_server(
    failing: Failing, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    await _fail_once(failing, settings, monkeypatch, name, code)


async def _fail_once(
    failing: Failing, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    monkeypatch.setattr("ximler.audit.sealing.EVERY_S", 0.05)
    monkeypatch.setattr("ximler.apikeys.verification._WRITE_USED_EVERY_S", 0.05)
    monkeypatch.setattr("ximler.accounts.session_authentication._WRITE_EVERY_S", 0.05)
    monkeypatch.setattr("ximler.worker._LOOK_EVERY_S", 0.2)
    monkeypatch.setattr("ximler.projects.patches._LOOK_S", 0.05)
    monkeypatch.setattr("ximler.runtime._FIRST_RESTART_S", 0.05)
    parts = Parts(failing.database, settings)
    began = ended = 0

    async def counted(stop: asyncio.Event) -> None:
        nonlocal began, ended
        began += 1
        try:
            await parts.run[name](stop)
        finally:
            ended += 1

    async with failing.fail(*COMMANDS, errorCode=code) as hits, asyncio.timeout(20):
        with round_trips() as trips:
            runtime = Runtime([Part(name, counted)], shutdown=Shutdown(2))
            runtime.start()
        try:
            while not await hits():  # noqa: ASYNC110 (the server counts)
                await asyncio.sleep(0.02)
            before = len(trips)
            await parts.give_work()
            while began == ended or len(trips) == before or not await parts.did_its_work(name):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        finally:
            await runtime.close()
    parts.keyring.close()
