"""E-mail, against a real SMTP server."""

import email
import email.policy
import socket

import pytest
import structlog
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP

from ximler.core.settings import Settings, SettingsError
from ximler.notifications.email import Folder, MailUnavailable, Rejected, Smtp, compose, mailer

SETTINGS = Settings(public_url="https://ximler.example", secret_key="k" * 32)


def message(**changes):
    values = {"to": "ada@example.com", "subject": "Confirm your e-mail address", "key": "k", "name": "Ada", "hours": 24}
    return compose("confirm", SETTINGS, link="https://ximler.example/confirm?token=abc", **(values | changes))


class Server:
    """aiosmtpd, on a free port; `refuse` is what it answers to a recipient."""

    def __init__(self):
        self.received = []
        self.refuse = None

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):  # noqa: N802 (aiosmtpd's name)
        if self.refuse:
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 (aiosmtpd's name)
        self.received.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 taken"


class _Controller(Controller):
    def factory(self):
        return SMTP(self.handler, hostname="test", enable_SMTPUTF8=True)


@pytest.fixture
def server(free_port_number):
    handler = Server()
    controller = _Controller(handler, hostname="127.0.0.1", port=free_port_number)
    controller.start()
    handler.url = f"smtp://127.0.0.1:{free_port_number}"
    yield handler
    controller.stop()


@pytest.fixture
def free_port_number():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def test_a_message_arrives_with_both_its_parts(server):
    await Smtp(server.url).send(message())
    (arrived,) = server.received
    assert arrived["To"] == "ada@example.com"
    assert arrived["From"] == "Ximler <no-reply@ximler.example>"
    assert arrived["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = arrived.get_body((kind,)).get_content()
        assert "https://ximler.example/confirm?token=abc" in text
        assert "Hello Ada," in text


async def test_a_name_cannot_smuggle_markup_or_headers(server):
    await Smtp(server.url).send(message(name="<img src=x onerror=alert(1)>"))
    assert "<img" not in server.received[0].get_body(("html",)).get_content()
    with pytest.raises(ValueError, match="Header values may not contain"):
        message(subject="Hi\r\nBcc: everybody@example.com")


async def test_the_same_occasion_has_the_same_message_id():
    assert message()["Message-ID"] == message()["Message-ID"]
    assert message()["Message-ID"] != message(key="other")["Message-ID"]


async def test_a_refused_address_is_final_and_a_busy_server_is_not(server):
    server.refuse = "550 no such user"
    with pytest.raises(Rejected, match="no such user"):
        await Smtp(server.url).send(message())
    server.refuse = "451 later"
    with pytest.raises(MailUnavailable):
        await Smtp(server.url).send(message())


async def test_a_server_that_is_away_is_unavailable(free_port_number):
    with pytest.raises(MailUnavailable, match="cannot be reached"):
        await Smtp(f"smtp://127.0.0.1:{free_port_number}").send(message())


async def test_a_password_is_never_sent_without_tls(server):
    with pytest.raises(MailUnavailable):
        await Smtp(server.url.replace("//", "//me:secret@")).send(message())
    assert server.received == []


async def test_in_development_messages_are_files(tmp_path):
    folder = Folder(tmp_path / "mail")
    await folder.send(message())
    await folder.send(message())
    (file,) = (tmp_path / "mail").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"token=3Dabc" in file.read_bytes()


@pytest.mark.parametrize(
    ("environment", "uri", "logged"),
    [
        (None, None, True),
        ("development", "mongodb://h/x", True),
        (None, "mongodb://h/x", False),
        ("production", None, False),
    ],
)
async def test_links_that_open_accounts_are_logged_in_development_only(tmp_path, environment, uri, logged):
    settings = Settings(environment=environment, mongodb_uri=uri, data_dir=tmp_path)
    with structlog.testing.capture_logs() as entries:
        await mailer(settings).send(message())
    (entry,) = entries
    assert entry["event"] == "e-mail written"
    assert ("token=abc" in str(entry)) is logged


@pytest.mark.parametrize("url", ["http://x", "smtp://", "smtp://host:port", "smtp://[::1", "mail.example.com"])
def test_an_unusable_url_is_said_at_start(url):
    with pytest.raises(SettingsError, match="XIMLER_SMTP_URL"):
        mailer(Settings(smtp_url=url))
