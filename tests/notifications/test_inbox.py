"""What users are told: in the inbox always, by mail where they want it, and read by nobody but them."""

from typing import Any

import pytest
from bson import ObjectId
from tests.mailing import Mailbox, worker_of
from tests.serving import Client

from ximler.accounts import preferences
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.notifications import inbox
from ximler.notifications.inbox import Link
from ximler.schema.job import OUTBOX
from ximler.schema.user import User
from ximler.worker import Worker

URL = "https://ximler.example"


@pytest.fixture
async def ada(database: Database) -> User:
    return await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))


@pytest.fixture
def me(ada: User) -> Actor:
    return Actor(kind="user", via="session", user_id=ada.id)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def worker(database: Database, settings: Settings, keyring: Keyring, mailbox: Mailbox) -> Worker:
    return worker_of(database, settings, keyring, mailbox, public_url=URL)


@pytest.fixture
def keyring(settings: Settings) -> Any:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


async def tell(database: Database, user: User, kind: Any = "BILLING", title: str = "80 % used", **more: Any) -> Any:
    return await database.transaction(lambda t: inbox.notify(t, user, kind, title, "Of your calls.", **more))


async def test_a_notification_is_in_the_inbox_and_mailed(database, ada, me, worker, mailbox) -> None:
    await tell(database, ada, metadata={"resource": "apiCalls"})
    (told,) = (await inbox.page(database, me)).items
    assert (told.title, told.message, told.metadata) == ("80 % used", "Of your calls.", {"resource": "apiCalls"})
    assert await worker.run_due() == 1
    (mail,) = mailbox.messages
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "80 % used")
    for kind in ("plain", "html"):
        assert "Of your calls." in mail.get_body((kind,)).get_content()
    assert mail["List-Unsubscribe"] is None


@pytest.mark.parametrize(
    ("kind", "preference"),
    [("BILLING", "billingAlerts"), ("SECURITY", "securityAlerts"), ("PRODUCT", "productUpdates")],
)
async def test_mail_follows_the_preference_and_the_inbox_does_not(
    database, ada, me, worker, mailbox, kind: str, preference: str
) -> None:
    await tell(database, ada, kind)
    path = f"notificationSettings.email.{preference}"
    await database.users.patch({"_id": ada.id}, {"$set": {path: False}})
    await worker.run_due()  # asked for before they changed their mind
    await tell(database, await database.users.get(ada.id), kind)
    assert await worker.run_due() == 0
    assert mailbox.messages == []
    assert len((await inbox.page(database, me)).items) == 2


async def test_system_notifications_are_never_mailed(database, ada, me, worker) -> None:
    await tell(database, ada, "SYSTEM")
    assert await worker.run_due() == 0
    assert len((await inbox.page(database, me)).items) == 1


async def test_a_title_with_line_breaks_is_one_line_and_smuggles_no_header(database, ada, me, worker, mailbox) -> None:
    await tell(database, ada, title="Hello\r\nBcc: everybody@example.com")
    await worker.run_due()
    assert mailbox.messages[0]["Bcc"] is None
    assert mailbox.messages[0]["Subject"] == "Hello Bcc: everybody@example.com"


async def test_an_aborted_change_sends_no_notification(database, ada, me, worker) -> None:
    async def fail(transaction: Database) -> None:
        await inbox.notify(transaction, ada, "BILLING", "Paid", "Thank you.")
        raise NotFound("after all")

    with pytest.raises(NotFound):
        await database.transaction(fail)
    assert (await inbox.page(database, me)).items == []
    assert await worker.run_due() == 0


async def test_a_repeated_job_notifies_the_user_once(database, ada, me, worker, mailbox) -> None:
    occasion = ObjectId()
    for _ in range(3):
        assert (await tell(database, ada, occasion=occasion)).id == occasion
    await worker.run_due()
    assert len(mailbox.messages) == 1
    assert len((await inbox.page(database, me)).items) == 1


async def test_an_announcement_costs_one_command_and_its_job_adds_it_once_and_mails_it(
    database, ada, me, worker, mailbox
) -> None:
    with round_trips() as trips:
        await inbox.announce(database, ada.id, "BILLING", "Paid\n", "Thank you.", {"n": 1}, link=Link("/i", "Open"))
    assert trips == [("insert", "outbox")]
    (job,) = await database[OUTBOX].find({"kind": "notifications.announce"})
    assert await worker.run_due() == 1
    (told,) = (await inbox.page(database, me)).items
    assert (told.id, told.created_at, told.title) == (job.id, job.created_at, "Paid")
    assert told.metadata == {"n": 1, "link": {"path": "/i", "label": "Open"}}
    assert f"{URL}/i" in mailbox.messages[0].get_body(("plain",)).get_content()
    await database[OUTBOX].patch(
        {"_id": job.id}, {"$set": {"status": "PENDING", "runAt": job.run_at}}
    )  # its worker died
    assert await worker.run_due() == 1
    assert [each.id for each in (await inbox.page(database, me)).items] == [job.id]
    await inbox.announce(database, ObjectId(), "BILLING", "Paid", "Thank you.")  # who has left
    assert await worker.run_due() == 1
    assert await database.notifications.count({}) == 1


async def test_a_notification_costs_one_command_and_a_mail_one_more(database, ada) -> None:
    with round_trips() as trips:
        await tell(database, ada)
        await tell(database, ada, "SYSTEM")
    told, asked, commit = ("insert", "notifications"), ("insert", "outbox"), ("commitTransaction", "")
    assert trips == [told, asked, commit, told, commit]


async def test_reading_marks_count_once_and_are_the_owners(database, ada, me) -> None:
    told = [await tell(database, ada, title=str(n)) for n in range(3)]
    stranger = Actor(kind="user", via="session", user_id=ObjectId())
    with pytest.raises(NotFound):
        await inbox.mark_read(database, stranger, told[0].id)
    assert await inbox.mark_all_read(database, stranger) == 0
    with pytest.raises(NotFound):
        await inbox.unread_counts(database, stranger, [ada.id])
    first = await inbox.mark_read(database, me, told[0].id)
    database.clock.offset_ms += 5000
    assert (await inbox.mark_read(database, me, told[0].id)).read_at == first.read_at
    assert await inbox.unread_counts(database, me, [ada.id]) == {ada.id: 2}
    assert [n.title for n in (await inbox.page(database, me, unread=True)).items] == ["2", "1"]
    assert await inbox.mark_all_read(database, me) == 2
    assert await inbox.unread_counts(database, me, [ada.id]) == {ada.id: 0}


async def test_product_mail_can_be_unsubscribed_from_with_one_click(
    database, ada, keyring, settings, worker, mailbox, client: Client
) -> None:
    await tell(database, ada, "PRODUCT", "New: bridges")
    await worker.run_due()
    (mail,) = mailbox.messages
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = mail["List-Unsubscribe"].strip("<>")
    assert link in mail.get_body(("plain",)).get_content()
    assert link.startswith(f"{URL}/unsubscribe?token=")
    path = link.removeprefix(URL)
    assert (await client.http.get(path)).status_code == 200  # a scanner looks, and nothing happens
    assert (await database.users.get(ada.id)).notification_settings.email.product_updates
    for _ in range(2):
        answer = await client.http.post(path, data={"List-Unsubscribe": "One-Click"})
        assert answer.status_code == 200, answer.text
    wants = (await database.users.get(ada.id)).notification_settings.email
    assert (wants.product_updates, wants.security_alerts) == (False, True)
    assert await database.audit_logs.count({"userId": ada.id, "action": "accounts.notifications.changed"}) == 1


async def test_a_token_of_another_link_does_not_unsubscribe(database, ada, keyring, client: Client) -> None:
    for token in ("", "x", keyring.sign("reset", ada.id), keyring.sign("unsubscribe", ada.id)[:-1]):
        answer = await client.http.post("/unsubscribe", params={"token": token})
        assert answer.status_code == 422
    with pytest.raises(Invalid):
        await preferences.unsubscribe(database, keyring, Actor(), keyring.sign("confirm", ada.id))
    assert (await database.users.get(ada.id)).notification_settings.email.product_updates


@pytest.mark.slow
async def test_a_customer_reads_their_inbox(ada_signed_in: Client, database: Database) -> None:
    user = await database.users.get({"email": "eve@example.com"})
    for n in range(3):
        await tell(database, user, title=f"n{n}", metadata={"n": n})
    query = "query ($a: String, $u: Boolean) { notifications(first: 2, after: $a, unread: $u) {"
    query += " nodes { id type title message metadata readAt createdAt } pageInfo { endCursor hasNextPage } } }"
    with round_trips() as trips:
        page = (await ada_signed_in.ask(query))["notifications"]
    assert trips[-1] == ("find", "notifications")
    assert [n["title"] for n in page["nodes"]] == ["n2", "n1"]
    rest = (await ada_signed_in.ask(query, a=page["pageInfo"]["endCursor"]))["notifications"]
    assert [n["metadata"] for n in rest["nodes"]] == [{"n": 0}]
    mark = "mutation ($id: ID!) { markNotificationRead(id: $id) { readAt } }"
    assert (await ada_signed_in.ask(mark, id=page["nodes"][0]["id"]))["markNotificationRead"]["readAt"]
    assert (await ada_signed_in.ask("{ me { unreadNotifications } }"))["me"] == {"unreadNotifications": 2}
    unread = (await ada_signed_in.ask(query, u=True))["notifications"]
    assert [n["title"] for n in unread["nodes"]] == ["n1", "n0"]
    assert (await ada_signed_in.ask("mutation { markAllNotificationsRead }"))["markAllNotificationsRead"] == 2
    assert (await ada_signed_in.ask(query, u=True))["notifications"]["nodes"] == []


@pytest.fixture
async def ada_signed_in(app: Any) -> Any:
    somebody = await Client(app).join("eve@example.com")
    yield somebody
    await somebody.http.aclose()
