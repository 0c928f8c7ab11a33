"""Mail about an account's security, through a real SMTP server: complete, to the right address, and not to be
unsubscribed.
"""

import email
import email.policy
import socket
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope
from tests.accounts.authenticator import Person

from ximler.accounts import notices
from ximler.accounts.keyring import Keyring
from ximler.accounts.notices import _NOTICES
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.notifications import inbox
from ximler.notifications.email import Smtp
from ximler.worker import Tools, Worker

DETAILS = {
    "origin": "a new device in Paris, France",
    "hint": "abcd",
    "left": 3,
    "count": 5,
    "address": "new@example.com",
}


class Server(Controller):
    """Takes everything."""

    def __init__(self, port: int) -> None:
        self.received: list[EmailMessage] = []
        self.recipients: list[str] = []
        super().__init__(self, hostname="127.0.0.1", port=port)

    def factory(self) -> SMTP:
        return SMTP(self, hostname="test", enable_SMTPUTF8=True)

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802 (aiosmtpd's name)
        assert isinstance(envelope.content, bytes)
        self.received.append(email.message_from_bytes(envelope.content, policy=email.policy.default))  # type: ignore[arg-type]
        self.recipients += envelope.rcpt_tos
        return "250 taken"


@pytest.fixture
def smtp() -> Iterator[Server]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = Server(port)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def post(database: Database, settings: Settings, keyring: Keyring, smtp: Server) -> Worker:
    mailer = Smtp(f"smtp://127.0.0.1:{smtp.port}")
    return Worker(Tools(database=database, settings=settings, keyring=keyring, mailer=mailer))


@pytest.mark.slow
@pytest.mark.parametrize("notice", _NOTICES)
async def test_a_notice_says_what_happened_in_both_parts(
    notice: str, person: Person, database: Database, post: Worker, smtp: Server
) -> None:
    await notices.notify(database, person.user.id, notice, to="old@example.com", **DETAILS)
    await post.run_due()
    (message,) = smtp.received
    assert smtp.recipients == ["old@example.com"]
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["List-Unsubscribe"] is None
    for kind in ("plain", "html"):
        body = message.get_body((kind,))
        assert body is not None
        text = body.get_content()
        assert "Hello Ada" in text
        assert "{" not in text
        assert ("/reset" in text) == (notice != "email_changed")


async def test_product_mail_can_be_unsubscribed_and_security_mail_cannot(
    person: Person, database: Database, post: Worker, smtp: Server
) -> None:
    await inbox.notify(database, person.user, "PRODUCT", title="Something new", message="Have a look.")
    await notices.notify(database, person.user.id, "factor_enabled")
    await post.run_due()
    by_subject = {message["Subject"]: message for message in smtp.received}
    assert by_subject["Something new"]["List-Unsubscribe"]
    assert by_subject["A second factor protects your account"]["List-Unsubscribe"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Eve\r\nBcc: everybody@example.com", "<script>alert(1)</script>", "{{ 7 * 7 }}", "{left}"]
)
async def test_a_name_that_another_application_stored_is_a_text_in_the_mail(
    person: Person, database: Database, post: Worker, smtp: Server, name: str
) -> None:
    await database.raw["users"].update_one({"_id": person.user.id}, {"$set": {"name": name}})
    await notices.notify(database, person.user.id, "recovery_code_used", left=3)
    await post.run_due()
    (message,) = smtp.received
    assert smtp.recipients == ["ada@example.com"]
    assert message["Bcc"] is None
    html = message.get_body(("html",))
    assert html is not None
    assert "<script>" not in html.get_content()
    assert "49" not in html.get_content()


async def test_a_notice_with_once_is_not_repeated(
    person: Person, database: Database, post: Worker, smtp: Server
) -> None:
    for day in ("monday", "monday", "tuesday"):
        await notices.notify(database, person.user.id, "wrong_codes", once=day, count=5)
    await post.run_due()
    assert len(smtp.received) == 2
