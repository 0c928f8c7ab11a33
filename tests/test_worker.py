"""The worker, and what its jobs do for accounts: links that are mailed, passwords that are replaced."""

import asyncio
import itertools
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime

import msgspec
import pytest
import structlog
from tests.contents import contents

from ximler.accounts import credentials, registration, sessions
from ximler.accounts.keyring import Keyring
from ximler.audit import records
from ximler.audit.keys import SealKeys, new_key
from ximler.audit.pruning import prune_expired
from ximler.audit.sealing import Sealer
from ximler.audit.verification import verify
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Forbidden, Invalid, NotFound, Unavailable
from ximler.database import outbox
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.notifications.email import MailUnavailable
from ximler.runtime import Runtime, Shutdown
from ximler.schema.job import OUTBOX
from ximler.schema.session import SESSIONS
from ximler.worker import Tools, Worker, background_parts

PASSWORD = "correct horse battery"
OTHER = "another long password"
NOBODY = Actor(address="192.0.2.1", user_agent="test")


class Mailbox:
    """Takes messages, or fails `failures` times first."""

    def __init__(self):
        self.messages = []
        self.failures = 0
        self.arrived = asyncio.Event()

    async def send(self, message):
        if self.failures:
            self.failures -= 1
            raise MailUnavailable("not now")
        self.messages.append(message)
        self.arrived.set()

    @property
    def last_token(self):
        return re.search(r"token=([\w-]+)", self.messages[-1].get_body(("plain",)).get_content())[1]


@pytest.fixture
def mailbox():
    return Mailbox()


@pytest.fixture
def keyring(settings):
    ring = Keyring(settings)
    yield ring
    ring.close()


@pytest.fixture
def worker(database, settings, keyring, mailbox):
    return Worker(Tools(database=database, settings=settings, keyring=keyring, mailer=mailbox))


@pytest.fixture
async def ada(database, keyring, worker, mailbox):
    await registration.register(database, keyring, Actor(), name="Ada", email="ada@example.com", password=PASSWORD)
    await worker.run_due()
    return await registration.confirm(database, keyring, NOBODY, mailbox.last_token, password=PASSWORD)


async def sign_in(database, keyring, settings, password=PASSWORD):
    return await sessions.sign_in(database, keyring, settings, NOBODY, email="ada@example.com", password=password)


async def test_registering_mails_a_link_that_makes_the_account(database, keyring, worker, mailbox):
    with round_trips() as trips:
        await registration.register(database, keyring, Actor(), name="Ada", email="ada@example.com", password=PASSWORD)
    assert len(trips) == 4  # one of them counts how often the address is asked for
    assert await worker.run_due() == 1
    assert mailbox.messages[0]["Subject"] == "Confirm your e-mail address"
    user = await registration.confirm(database, keyring, NOBODY, mailbox.last_token, password=PASSWORD)
    assert user.email_verified
    with pytest.raises(Invalid, match="was used"):
        await registration.confirm(database, keyring, NOBODY, mailbox.last_token, password=PASSWORD)


async def test_a_link_without_its_password_creates_no_account(database, keyring, worker, mailbox):
    """An attacker registers a victim's address;
    the victim opens the link, and has no idea of the password."""
    await registration.register(database, keyring, Actor(), name="Eve", email="victim@example.com", password=PASSWORD)
    await worker.run_due()
    for guess in (OTHER, "", "x" * 2000):
        with pytest.raises(Invalid, match="password"):
            await registration.confirm(database, keyring, NOBODY, mailbox.last_token, password=guess)
    assert await database.users.count({}) == 0
    assert await registration.confirm(database, keyring, NOBODY, mailbox.last_token, password=PASSWORD)


async def test_a_taken_address_gets_another_message_and_no_link(database, keyring, worker, mailbox, ada):
    with round_trips() as trips:
        await registration.register(database, keyring, Actor(), name="Eve", email="ada@example.com", password=OTHER)
    assert len(trips) == 4
    await worker.run_due()
    assert mailbox.messages[-1]["Subject"] == "You have an account already"
    assert "token" not in mailbox.messages[-1].as_string()


@pytest.mark.slow
async def test_a_mail_that_fails_is_sent_again_with_the_same_link(database, keyring, worker, mailbox):
    mailbox.failures = 2
    await registration.register(database, keyring, Actor(), name="Ada", email="ada@example.com", password=PASSWORD)
    for _ in range(3):
        await worker.run_due()
        database.clock.offset_ms += 60_000
    assert len(mailbox.messages) == 1
    assert await database[OUTBOX].find({}) == []  # jobs that anybody can cause are not kept
    assert await registration.confirm(database, keyring, NOBODY, mailbox.last_token, password=PASSWORD)


async def test_nothing_in_the_database_is_a_token(database, keyring, worker, mailbox, ada):
    await registration.register(database, keyring, Actor(), name="Eve", email="eve@example.com", password=OTHER)
    await credentials.request_reset(database, keyring, Actor(), email="ada@example.com")
    await worker.run_due()
    tokens = [
        re.search(r"token=([\w-]+)", m.as_string().replace("=\r\n", "").replace("=3D", "=")) for m in mailbox.messages
    ]
    everything = b"".join(itertools.chain(*(await contents(database)).values()))
    assert len([found for found in tokens if found]) == 3
    for found in tokens:
        assert not found or found[1].encode() not in everything


@pytest.mark.slow
async def test_a_forgotten_password_is_replaced_and_ends_every_session(
    database, keyring, settings, worker, mailbox, ada
):
    old = await sign_in(database, keyring, settings)
    with round_trips() as trips:
        await credentials.request_reset(database, keyring, Actor(), email="ADA@example.com")
    assert len(trips) == 2
    await worker.run_due()
    await credentials.reset(database, keyring, NOBODY, token=mailbox.last_token, password=OTHER)
    with pytest.raises(sessions.SessionExpired):
        await sessions.authenticate(database, keyring, old.token)
    with pytest.raises(sessions.BadCredentials):
        await sign_in(database, keyring, settings)
    assert await sign_in(database, keyring, settings, OTHER)
    await worker.run_due()
    assert mailbox.messages[-1]["Subject"] == "Your password was changed"


async def test_a_reset_for_an_unknown_address_looks_the_same_and_mails_nothing(database, keyring, worker, mailbox):
    with round_trips() as trips:
        await credentials.request_reset(database, keyring, Actor(), email="nobody@example.com")
    assert len(trips) == 2
    await worker.run_due()
    assert mailbox.messages == []


@pytest.mark.slow
async def test_of_racing_uses_of_one_reset_link_one_succeeds(database, keyring, settings, worker, mailbox, ada):
    await credentials.request_reset(database, keyring, Actor(), email="ada@example.com")
    await worker.run_due()
    token = mailbox.last_token
    results = await asyncio.gather(
        *(credentials.reset(database, keyring, NOBODY, token=token, password=f"{OTHER} {n}") for n in range(8)),
        return_exceptions=True,
    )
    assert [type(r) for r in results].count(type(None)) == 1
    assert {type(r) for r in results} == {type(None), Invalid}
    winner = next(n for n, r in enumerate(results) if r is None)
    assert await sign_in(database, keyring, settings, f"{OTHER} {winner}")


async def test_links_work_for_their_own_purpose_and_time_only(database, keyring, worker, mailbox, ada):
    await credentials.request_reset(database, keyring, Actor(), email="ada@example.com")
    await worker.run_due()
    token = mailbox.last_token
    for wrong in ("", "x", token[:-1], token + "A", token[:-1] + ("A" if token[-1] != "A" else "B"), "é" * 59):
        with pytest.raises(Invalid):
            await credentials.reset(database, keyring, NOBODY, token=wrong, password=OTHER)
    with pytest.raises(Invalid):
        await registration.confirm(database, keyring, NOBODY, token, password=PASSWORD)
    database.clock.offset_ms += 3_600_001
    with pytest.raises(Invalid):
        await credentials.reset(database, keyring, NOBODY, token=token, password=OTHER)


async def test_changing_the_password_ends_the_others_and_gives_a_new_session(database, keyring, settings, ada):
    old = [await sign_in(database, keyring, settings) for _ in range(3)]
    actor = Actor(
        kind="user",
        via="session",
        user_id=ada.id,
        session_id=old[0].session.id,
        authenticated_at=database.clock.now(),
    )
    user = await database.users.get(ada.id)
    with pytest.raises(Forbidden):
        await credentials.change(database, keyring, settings, actor, user, current="wrong", new=OTHER)
    fresh = await credentials.change(database, keyring, settings, actor, user, current=PASSWORD, new=OTHER)
    assert (await sessions.authenticate(database, keyring, fresh.token))[1].id == ada.id
    for session in old:
        with pytest.raises(sessions.SessionExpired):
            await sessions.authenticate(database, keyring, session.token)


async def test_a_sign_in_in_flight_cannot_outlive_a_password_change(database, keyring, settings, ada):
    """The user was read and the old password verified before the change; the session must not be made after
    it.
    """
    stale = await database.users.get(ada.id)
    actor = Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())
    await credentials.change(database, keyring, settings, actor, stale, current=PASSWORD, new=OTHER)
    before = await database[SESSIONS].count({})
    with pytest.raises(sessions.BadCredentials):
        await sessions.start(database, keyring, settings, NOBODY, stale)
    assert await database[SESSIONS].count({}) == before


async def test_sessions_are_listed_and_revoked_by_their_owner_only(database, keyring, settings, ada):
    made = [await sign_in(database, keyring, settings) for _ in range(3)]
    actor = Actor(kind="user", via="session", user_id=ada.id, session_id=made[0].session.id)
    listed = await sessions.mine(database, actor)
    assert {s.id for s in listed} == {m.session.id for m in made}
    assert listed[0].address == "192.0.2.1"
    somebody = Actor(kind="user", via="session", user_id=type(ada.id)())
    with pytest.raises(NotFound):
        await sessions.revoke(database, somebody, made[1].session.public_id)
    await sessions.revoke(database, actor, made[1].session.public_id)
    assert await sessions.revoke_others(database, actor) == 1
    assert [s.id for s in await sessions.mine(database, actor)] == [made[0].session.id]


@pytest.mark.slow
async def test_a_waiting_worker_is_woken_within_a_moment(database, settings, mailbox, keyring):
    feed = Feed(database)
    worker = Worker(Tools(database=database, settings=settings, keyring=keyring, mailer=mailbox, feed=feed))
    stop = asyncio.Event()
    running = asyncio.gather(feed.run(stop), worker.run(stop))
    await asyncio.sleep(0.5)  # it is idle, and would look again after five seconds
    started = time.monotonic()
    await registration.register(database, keyring, Actor(), name="Ada", email="ada@example.com", password=PASSWORD)
    async with asyncio.timeout(4):
        await mailbox.arrived.wait()
    stop.set()
    await running
    assert mailbox.messages
    assert time.monotonic() - started < 2


@pytest.mark.slow
async def test_an_unreadable_job_does_not_stop_the_worker(database, settings, mailbox, keyring):
    past = datetime(2020, 1, 1, tzinfo=UTC)
    unreadable = {"kind": registration.send_link.name, "status": "PENDING", "runAt": past, "lastError": 5}
    unclaimable = {"kind": registration.send_link.name, "status": "PENDING", "runAt": past, "attempts": "x"}
    await database.raw.outbox.insert_many([unreadable | {"attempts": 0}, unclaimable], bypass_document_validation=True)
    worker = Worker(Tools(database=database, settings=settings, keyring=keyring, mailer=mailbox), at_once=2)
    with structlog.testing.capture_logs() as logs:
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        await asyncio.sleep(0.3)
        await registration.register(database, keyring, Actor(), name="Ada", email="ada@example.com", password=PASSWORD)
        await asyncio.wait_for(mailbox.arrived.wait(), 10)
        assert not running.done()
        stop.set()
        await running
    (failed,) = [entry for entry in logs if entry["event"] == "job cannot be read"]
    assert "cannot be read" in failed["reason"]


async def test_an_outage_is_logged_once(database, worker, monkeypatch):
    async def away(*_):
        raise Unavailable("gone")

    monkeypatch.setattr(outbox, "claim", away)
    monkeypatch.setattr("ximler.worker._LOOK_EVERY_S", 0.01)
    with structlog.testing.capture_logs() as logs:
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        await asyncio.sleep(0.2)
        stop.set()
        await running
    assert [entry["event"] for entry in logs] == ["jobs wait"]


async def test_a_bug_in_a_handler_is_retried_and_a_poisoned_job_dies(database, worker):
    @outbox.job("test.broken", outbox.Nothing)
    async def broken():
        raise ZeroDivisionError

    await broken.enqueue(database, outbox.Nothing())
    for _ in range(outbox.MAX_ATTEMPTS + 2):
        await worker.run_due()
        database.clock.offset_ms += 3 * 3600_000
    (job,) = await database[OUTBOX].find({})
    assert (job.status, job.attempts) == ("DEAD", outbox.MAX_ATTEMPTS)
    assert job.last_error.startswith("ZeroDivisionError")


async def test_a_job_that_kills_every_worker_is_given_up(database, worker):
    await outbox.enqueue(database, "accounts.send_reset", {"email": "a@example.com"})
    for _ in range(outbox.MAX_ATTEMPTS):
        assert await outbox.claim(database, ["accounts.send_reset"])  # and dies
        database.clock.offset_ms += 61_000
    await worker.run_due()
    assert (await database[OUTBOX].find({}))[0].status == "DEAD"


@pytest.mark.slow
async def test_a_killed_worker_process_loses_no_mail(database, keyring, mongodb_uri, tmp_path):
    env = {
        **os.environ,
        "MONGODB_URI": mongodb_uri,
        "XIMLER_DATABASE": database.name,
        "XIMLER_SECRET_KEY": "a secret key that is only for the tests",
        "XIMLER_DATA_DIR": str(tmp_path),
    }
    for n in range(20):
        await registration.register(
            database, keyring, Actor(), name="Ada", email=f"u{n}@example.com", password=PASSWORD
        )
    command = [sys.executable, "-m", "ximler", "worker"]
    process = await asyncio.create_subprocess_exec(*command, env=env, stderr=subprocess.DEVNULL)
    mail = tmp_path / "mail"
    await asyncio.to_thread(_until_written, mail)
    process.kill()
    await process.wait()
    await database.raw.outbox.update_many({"status": "RUNNING"}, {"$set": {"runAt": database.clock.now()}})
    again = await asyncio.create_subprocess_exec(*command, "--once", env=env, stdout=subprocess.DEVNULL)
    assert await again.wait() == 0
    assert len([f for f in mail.iterdir() if f.suffix == ".eml"]) == 20
    assert await database[OUTBOX].count({"kind": registration.send_link.name}) == 0  # removed when done


def _until_written(folder):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (folder.exists() and any(folder.iterdir())):
        time.sleep(0.002)


async def test_without_a_database_the_worker_waits_instead_of_dying(database, worker, monkeypatch):
    async def away(*_args):
        raise Unavailable("gone")

    monkeypatch.setattr(outbox, "claim", away)
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop))
    await asyncio.sleep(0.2)
    assert not running.done()
    stop.set()
    await running


@pytest.mark.slow
async def test_the_audit_log_is_pruned_daily_where_it_may_not_be_kept(database, settings, keyring, mailbox):
    keys = SealKeys.parse(new_key())
    for ago in (20, 5, 0):
        database.clock.offset_ms = -ago * 24 * 3_600_000
        await records.write(database, SYSTEM, "accounts.profile.changed", resource="things")
        await Sealer(database, keys).seal()
    kept = msgspec.structs.replace(settings, audit_retention_days=10)
    feed = Feed(database)
    tools = Tools(database=database, settings=kept, keyring=keyring, mailer=mailbox, seal_keys=keys, feed=feed)
    runtimes = [
        Runtime(
            [p for p in background_parts(tools) if p.name in ("worker", "scheduler")],
            database=database,
            shutdown=Shutdown(5),
        )
        for _ in range(2)
    ]
    for runtime in runtimes:
        runtime.start()
    try:
        async with asyncio.timeout(20):
            while await database.audit_logs.count({"action": "accounts.profile.changed"}) != 2:  # noqa: ASYNC110 (polls the database)
                await asyncio.sleep(0.05)
    finally:
        await asyncio.gather(*(runtime.close() for runtime in runtimes))
    jobs = await database[OUTBOX].find({"kind": prune_expired.name})
    assert len(jobs) == 1
    await verify(database, keys)


async def test_pruning_without_the_key_is_tried_again_where_it_is(database, settings, keyring, mailbox):
    await prune_expired.enqueue(database, outbox.Nothing())
    kept = msgspec.structs.replace(settings, audit_retention_days=10)
    tools = Tools(database=database, settings=kept, keyring=keyring, mailer=mailbox)
    assert await Worker(tools).run_due() == 1
    (job,) = await database[OUTBOX].find({"kind": prune_expired.name})
    assert job.status == "PENDING"
    assert "XIMLER_AUDIT_KEY" in job.last_error
