"""E-mail, against a real SMTP server."""

import email
import email.policy
import re
import socket
from html import unescape
from pathlib import Path

import pytest
import structlog
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP

from ximler import notifications
from ximler.core.settings import Settings, SettingsError
from ximler.notifications.email import Folder, MailUnavailable, Smtp, compose, greeting, mailer
from ximler.schema.user import User

SETTINGS = Settings(public_url="https://ximler.example", secret_key="k" * 32)


LINK = "https://ximler.example/confirm?token=abc"


def message(**changes):
    values = {"to": "ada@example.com", "subject": "Confirm your e-mail address", "key": "k", "hours": 24}
    return compose("confirm", SETTINGS, link=LINK, label="Create my account", **(values | changes))


def to_ada(name, *, verified=True):
    """A mail that greets its reader."""
    ada = User(name=name, email="ada@example.com", password="-", email_verified=verified)
    return compose("password_changed", SETTINGS, to=ada.email, subject="s", key="k", link=LINK, greeting=greeting(ada))


class Server:
    """aiosmtpd, on a free port."""

    def __init__(self):
        self.received = []

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


@pytest.mark.slow
async def test_a_message_arrives_with_both_its_parts(server):
    await Smtp(server.url).send(message())
    (arrived,) = server.received
    assert arrived["To"] == "ada@example.com"
    assert arrived["From"] == "Ximler <no-reply@ximler.example>"
    assert arrived["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = arrived.get_body((kind,)).get_content()
        assert "https://ximler.example/confirm?token=abc" in text
        assert "Open this link and enter the password you registered with to finish creating your account." in text
    html = arrived.get_body(("html",)).get_content()
    assert html.count(f'href="{LINK}"') == 1
    assert "Create my account" in html


async def test_a_name_cannot_smuggle_markup_or_headers(server):
    await Smtp(server.url).send(to_ada("<img src=x onerror=alert(1)>"))
    assert "Hello <img src=x onerror=alert(1)>," in server.received[0].get_body(("plain",)).get_content()
    assert "<img" not in server.received[0].get_body(("html",)).get_content()
    with pytest.raises(ValueError, match="Header values may not contain"):
        message(subject="Hi\r\nBcc: everybody@example.com")


async def test_the_same_occasion_has_the_same_message_id():
    assert message()["Message-ID"] == message()["Message-ID"]
    assert message()["Message-ID"] != message(key="other")["Message-ID"]


async def test_a_server_that_is_away_is_unavailable(free_port_number):
    with pytest.raises(MailUnavailable, match="cannot be used"):
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


@pytest.mark.parametrize(
    "url", ["http://x", "smtp://", "smtp://host:port", "smtp://[::1", "mail.example.com", "smtp://h?x=y"]
)
def test_an_unusable_url_is_reported_at_start(url):
    with pytest.raises(SettingsError, match="XIMLER_SMTP_URL"):
        mailer(Settings(smtp_url=url))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ada Lovelace", True),
        ("Dr. J.R.R. O'Neill-Škvorecký, PhD", True),
        ("WIN 1000$ http://evil.example/claim now", False),  # chosen before names were checked, or elsewhere
        ("go to evil.example/claim", False),
        ("www.evil.example", False),
        ("\u202egnp.exe", False),
        ("\u3164", False),
    ],
)
def test_no_greeting_contains_a_link_and_no_unconfirmed_address_is_greeted_by_name(name, shown):
    for verified in (True, False):
        for kind in ("plain", "html"):
            text = unescape(to_ada(name, verified=verified).get_body((kind,)).get_content())
            assert (f"Hello {name}," in text) is (shown and verified)
            assert "Hello," in text or (shown and verified)
            assert "evil.example" not in text


@pytest.mark.parametrize("template", ["confirm", "email_change", "account_exists", "reopen_offer", "email_taken"])
def test_templates_for_addresses_that_may_be_a_strangers_take_no_text_of_the_sender(template):
    source = (Path(notifications.__file__).parent / "templates" / f"{template}.txt").read_text()
    assert set(re.findall(r"{{ (\w+) }}", source)) <= {"link", "hours", "until"}


@pytest.mark.parametrize(
    ("url", "required"),
    [
        ("smtp://mail.example.com", True),
        ("smtp://93.184.216.34:25", True),
        ("smtp://me:secret@localhost", True),
        ("smtp://localhost:1025", None),
        ("smtp://mailpit:1025", None),
        ("smtp://10.0.0.5", None),
        ("smtp://mail.example.com?starttls=optional", None),
        ("smtp://me:secret@mail.example.com?starttls=optional", True),
        ("smtps://mail.example.com", False),  # TLS from the first byte
    ],
)
def test_tls_is_required_for_public_hosts_and_passwords(url, required):
    assert Smtp(url)._starttls is required


async def test_a_check_connects_and_sends_nothing(server):
    assert (await Smtp(server.url).check()).endswith("not encrypted")
    assert server.received == []
