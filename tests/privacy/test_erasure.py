"""Thirty days after an account was closed: nothing in the database says who it was, whatever ended the job in
the middle.
"""

import asyncio
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from tests.contents import contents
from tests.mailing import Mailbox, worker_of

from ximler.accounts import administration, closing, credentials, sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import SYSTEM, Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.notifications import inbox
from ximler.privacy import erasure
from ximler.projects import assets_uploads, projects, sharing
from ximler.schema import CATALOGUE
from ximler.schema.api_key import ApiKey
from ximler.schema.audit_log import AUDIT_LOGS
from ximler.schema.document import Collection
from ximler.schema.payment import Payment
from ximler.schema.subscription import Subscription
from ximler.schema.usage import Usage
from ximler.schema.user import USERS, User
from ximler.worker import Worker

pytestmark = pytest.mark.slow

MARK = "Xanadu"  # in everything that says who she was
PASSWORD = "correct horse battery"
DAYS = timedelta(days=30)


@pytest.mark.parametrize("collection", CATALOGUE, ids=lambda c: c.name)
def test_every_field_of_a_users_document_says_whether_it_is_exported_and_erased(collection: Collection[Any]) -> None:
    if collection.user_field is None and collection is not USERS:
        assert (
            not {"userId", "email"} & collection.marks.keys() or collection.name == "registrations"
        )  # gone within a day
        return
    unmarked = [name for name, marks in collection.marks.items() if not {"exported", "erased"} <= marks.keys()]
    assert unmarked == []


def test_erasure_in_each_collection_follows_the_marks() -> None:
    done = {c.name: c.erasure for c in CATALOGUE if c.user_field and c is not AUDIT_LOGS}
    assert {name for name, what in done.items() if what == "fields"} == {
        "subscriptions",
        "payments",
        "usage",
        "redemptions",
        "invoices",
        "assetfiles",
    }
    assert {name for name, what in done.items() if what == "nothing"} == {
        "usageevents",
        "charges",
        "credits",
        "refunds",
        "movements",
        "customerdays",
    }


@pytest.fixture
def keyring(settings: Settings) -> Any:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def worker(database: Database, settings: Settings, keyring: Keyring, mailbox: Mailbox) -> Worker:
    return worker_of(database, settings, keyring, mailbox)


@pytest.fixture
async def ada(database: Database, keyring: Keyring, settings: Settings) -> User:
    return await person(database, keyring, settings, f"{MARK}@example.com")


async def person(database: Database, keyring: Keyring, settings: Settings, email: str) -> User:
    """Somebody with something of everything, each part marked; and what another application knows of them."""
    ada = await administration.create(database, keyring, SYSTEM, name=MARK, email=email, password=PASSWORD)
    actor = Actor(kind="user", via="session", user_id=ada.id)
    await database.raw["users"].update_one(
        {"_id": ada.id},
        {"$set": {"phone": MARK, "avatar": MARK, "stripeCustomerId": MARK, "lastLogin": ada.created_at}},
    )
    await sessions.sign_in(database, keyring, settings, Actor(user_agent=MARK), email=email, password=PASSWORD)
    for _ in range(2):
        made = await projects.create(database, actor, name=MARK, canvas_data={"a": MARK})
    sent = await assets_uploads.begin(database, actor, made.id, name=MARK, size_bytes=None, most=1000)
    await sent.write(MARK.encode())
    await sent.finish()
    running = await assets_uploads.begin(database, actor, made.id, name=MARK, size_bytes=None, most=3_000_000)
    await running.write(MARK.encode() * (2_100_000 // len(MARK)))
    await projects.delete(database, actor, made.id)
    now = database.clock.now()
    about: Any = {"user_id": ada.id, "currency": "USD"}
    subscription = await database.subscriptions.insert(
        Subscription(**about, plan_id="pro", status="ACTIVE", start_date=now, price=29, stripe_customer_id=MARK)
    )
    await database.payments.insert(
        Payment(
            **about,
            subscription_id=subscription.id,
            amount=29,
            status="PAID",
            description=MARK,
            invoice_url=MARK,
            paid_at=now,
        )
    )
    await database.usage.insert(
        Usage(
            user_id=ada.id, resource_type="apiCalls", amount=7, period_start=now, period_end=now, metadata={"r": MARK}
        )
    )
    await database.api_keys.insert(ApiKey(user_id=ada.id, name=MARK, key_hash=MARK))
    await database.raw["credentials"].update_one(
        {"_id": ada.id}, {"$set": {"lockReason": MARK, "places": [MARK]}}, upsert=True
    )
    await database.raw["sessions"].update_many({"userId": ada.id}, {"$set": {"place": MARK}})
    await database.raw["emailchanges"].insert_one(
        {
            "_id": ada.id,
            "requestId": ada.id,
            "email": f"new-{email}",
            "expiresAt": now + timedelta(days=1),
            "createdAt": now,
        }
    )
    override = {"override": {"reason": MARK, "by": "cli"}}
    limits = {"planId": "pro", "planName": "Pro", "projects": 1, "storageBytes": 1, "apiCalls": 1}
    await database.raw["entitlements"].insert_one({"_id": ada.id, **limits, **override})
    period = {"userId": ada.id, "resource": "apiCalls", "periodStart": now, "periodEnd": now, "limit": 1}
    await database.raw["quotas"].insert_one({"_id": f"{ada.id}:apiCalls:2026-01-01", **period, "detail": {"h": MARK}})
    await inbox.notify(database, await database.users.get(ada.id), "PRODUCT", MARK, MARK)
    await credentials.request_reset(database, keyring, Actor(), email=email)
    await database.raw["outbox"].update_many({"payload.email": email.lower()}, {"$set": {"status": "DEAD"}})
    return ada


async def close(database: Database, ada: User) -> None:
    actor = Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())
    await closing.close(database, actor, await database.users.get(ada.id))


async def traces(database: Database) -> list[str]:
    """Where something still says who it was."""
    return [
        name
        for name, documents in (await contents(database)).items()
        for document in documents
        if MARK.lower().encode() in document.lower()
    ]


async def test_after_thirty_days_no_personal_data_is_left(database, keyring, worker, ada) -> None:
    await close(database, ada)
    await worker.run_due()
    assert "users" in await traces(database)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    await worker.run_due()
    assert await traces(database) == []
    left = await database.raw["users"].find_one({"_id": ada.id})
    assert left is not None
    assert (left["name"], left["email"]) == ("Erased", f"erased-{ada.id}@erased.invalid")
    assert left.keys() == {
        *("_id", "name", "email", "password", "emailVerified"),
        *("deletedAt", "createdAt", "updatedAt"),
    }
    for name in (
        "projects",
        "sessions",
        "credentials",
        "notifications",
        "apikeys",
        "gauges",
        "emailchanges",
        "quotas",
        "entitlements",
    ):
        assert await database.raw[name].count_documents({}) == 0, name


async def test_a_share_in_each_direction_keeps_no_address(database, keyring, worker, ada) -> None:
    bob = await administration.create(database, keyring, SYSTEM, name="Bob", email="bob@example.com", password=PASSWORD)
    await database.users.patch_many({}, {"$set": {"emailVerified": True}})
    for owner, person in ((ada, bob), (bob, ada)):
        actor = Actor(kind="user", via="session", user_id=owner.id)
        made = await projects.create(database, actor, name=MARK if owner is ada else "Bridge")
        for role in ("READER", "EDITOR"):
            await sharing.share(database, keyring, actor, made.id, email=person.email, role=role)  # type: ignore[arg-type]  # of both
        await worker.run_due()
        await sharing.revoke(database, actor, made.id, person.email)
        await sharing.share(database, keyring, actor, made.id, email=person.email, role="READER")
    await worker.run_due()
    assert await database.notifications.count({"userId": bob.id}) == 2
    await close(database, ada)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    await worker.run_due()
    assert await traces(database) == []
    assert await database.audit_logs.count({"userId": bob.id, "action": "projects.project.shared"}) == 3


async def test_the_books_stay_whole(database, keyring, worker, ada) -> None:
    before = (await database.payments.find({}), await database.subscriptions.find({}))
    await close(database, ada)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    await worker.run_due()
    (payment,), (subscription,) = await database.payments.find({}), await database.subscriptions.find({})
    for name in ("id", "user_id", "subscription_id", "amount", "currency", "status", "paid_at", "created_at"):
        assert getattr(payment, name) == getattr(before[0][0], name)
    assert (subscription.status, subscription.auto_renew, subscription.price) == ("CANCELLED", False, 29)
    assert [row.amount for row in await database.usage.find({})] == [7]


async def test_others_are_left_alone(database, keyring, settings, worker, ada) -> None:
    bob = await administration.create(database, keyring, SYSTEM, name="Bob", email="bob@example.com", password=PASSWORD)
    actor = Actor(kind="user", via="session", user_id=bob.id)
    await projects.create(database, actor, name="Bridge")
    await database.payments.insert(Payment(user_id=bob.id, amount=5, status="PAID", description="Bob's"))
    before = [await database.users.get(bob.id), await database.payments.find({"userId": bob.id})]
    await close(database, ada)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    await worker.run_due()
    assert [await database.users.get(bob.id), await database.payments.find({"userId": bob.id})] == before
    assert len((await projects.page(database, actor)).items) == 1


async def test_the_address_is_free_again_afterwards(database, keyring, worker, ada) -> None:
    await close(database, ada)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    await worker.run_due()
    again = await administration.create(database, keyring, SYSTEM, name="New", email=ada.email, password=PASSWORD)
    assert again.id != ada.id


STEPS = [
    "accounts.begin",
    "billing.end_subscriptions",
    "billing.forget_cards",
    *(f"_erase_from {c.name}" for c in CATALOGUE if c.erasure != "nothing" and c is not AUDIT_LOGS),
    "outbox.forget",
    "accounts.finish",
    "audit.erase",
]


@pytest.mark.parametrize("name", STEPS)
async def test_ended_after_any_step_it_is_done_the_next_time(name, database, keyring, worker, ada, monkeypatch) -> None:
    await close(database, ada)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    path, _, collection = name.partition(" ")
    domain, _, verb = path.rpartition(".")
    module: Any = getattr(erasure, domain) if domain else erasure
    step = getattr(module, verb)

    async def ends(*args: Any, **more: Any) -> Any:
        await step(*args, **more)
        if not collection or args[1].name == collection:
            raise ConnectionError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(module, verb, ends)
        await worker.run_due()
    with pytest.raises(sessions.BadCredentials):  # signing in fails from the first step on
        await closing.reopen(database, keyring, worker._tools.settings, Actor(), email=ada.email, password=PASSWORD)
    database.clock.offset_ms += 3600_000
    await worker.run_due()
    assert await traces(database) == []
    assert await database.audit_logs.count({"action": "privacy.account.erased"}) == 1


async def test_a_second_erasure_changes_nothing(database, keyring, worker, ada) -> None:
    await close(database, ada)
    closed = await database.users.get(ada.id, deleted=True)
    database.clock.offset_ms += DAYS // timedelta(milliseconds=1)
    for _ in range(2):
        assert await erasure.erase(closing.Closed(user_id=ada.id, closed_at=closed.deleted_at), database=database)
        state = await database.raw["users"].find_one({"_id": ada.id}, {"updatedAt": 0})
    assert state == await database.raw["users"].find_one({"_id": ada.id}, {"updatedAt": 0})
    assert await database.audit_logs.count({"action": "privacy.account.erased"}) == 1


async def test_an_account_that_was_closed_at_another_time_is_not_erased(database, keyring, ada) -> None:
    await close(database, ada)
    assert not await erasure.erase(
        closing.Closed(user_id=ada.id, closed_at=database.clock.now() + timedelta(days=1)), database=database
    )
    assert "users" in await traces(database)


async def test_an_account_reopened_at_the_last_moment_is_complete_or_erased(
    database, keyring, settings, worker
) -> None:
    """Racing the job: either everything is there, or nothing."""
    for n in range(6):
        ada = await person(database, keyring, settings, f"{MARK}{n}@example.com")
        await close(database, ada)
        database.clock.offset_ms += DAYS // timedelta(milliseconds=1)

        async def reopen(email: str = ada.email, wait: float = n / 100) -> bool:
            await asyncio.sleep(wait)
            try:
                await closing.reopen(database, keyring, settings, Actor(), email=email, password=PASSWORD)
            except sessions.BadCredentials:
                return False
            return True

        back, _ = await asyncio.gather(reopen(), worker.run_due())
        user = await database.users.find_one({"_id": ada.id}, deleted=True)
        assert user is not None
        assert (user.name == MARK) == back
        kept = await database.projects.count({"userId": ada.id}, deleted=True)
        assert kept == (2 if back else 0)


@pytest.mark.slow
async def test_a_worker_killed_in_the_middle_leaves_nothing_behind(
    database, keyring, settings, ada, mongodb_uri: str, tmp_path: Path
) -> None:
    database.clock.offset_ms = -31 * 24 * 3600_000
    many = [
        {"_id": ObjectId(), "userId": ada.id, "title": MARK, "message": MARK, "type": "SYSTEM"} for _ in range(10_000)
    ]
    await database.raw["notifications"].insert_many(many)
    hour = {
        "periodStart": ada.created_at,
        "periodEnd": ada.created_at,
        "resourceType": "apiCalls",
        "metadata": {"m": MARK},
    }
    await database.raw["usage"].insert_many([{"userId": ada.id, "amount": n, **hour} for n in range(10_000)])
    await close(database, ada)
    database.clock.offset_ms = 0
    env = {
        **os.environ,
        "MONGODB_URI": mongodb_uri,
        "XIMLER_DATABASE": database.name,
        "XIMLER_SECRET_KEY": "a secret key that is only for the tests",
        "XIMLER_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "ximler", "worker", "--once"]
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while await database.raw["apikeys"].count_documents({}):  # it has begun
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    process.kill()
    await process.wait()
    assert await traces(database) != []
    await database.raw["outbox"].update_many({"status": "RUNNING"}, {"$set": {"runAt": database.clock.now()}})
    again = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.DEVNULL)
    assert await again.wait() == 0
    assert await traces(database) == []
    assert await database.raw["usage"].count_documents({"userId": ada.id}) == 10_001


async def test_it_costs_the_same_number_of_commands_however_much_there_is(database, keyring, worker, ada) -> None:
    await close(database, ada)
    closed = await database.users.get(ada.id, deleted=True)
    with round_trips() as trips:
        await erasure.erase(closing.Closed(user_id=ada.id, closed_at=closed.deleted_at), database=database)
    # one a collection, three of billing, one for shares of others, and four for a hundred files in GridFS
    assert len(trips) <= 48, trips


async def test_a_pending_job_of_an_erased_user_does_nothing(database, keyring, worker, mailbox, ada) -> None:
    changed = credentials.PasswordChanged(user_id=ada.id)
    await credentials.send_changed.enqueue(database, changed, run_at=database.clock.now() + DAYS * 2)
    await close(database, ada)
    await worker.run_due()
    mailbox.messages.clear()
    database.clock.offset_ms += 3 * DAYS // timedelta(milliseconds=1)
    await worker.run_due()
    assert mailbox.messages == []
