"""Replies of mail servers, over real SMTP, at each step, with and without SMTPUTF8.

Each row says where its rule comes from.
"""

import asyncio
import datetime as dt
import email
import email.policy
import ipaddress
import ssl
from functools import cache
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.mailing import worker_of
from tests.serving import PASSWORD

from ximler.accounts import registration
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.notifications.email import MailUnavailable, Rejected, Smtp, compose, is_final

ANYBODY = Actor(address="192.0.2.7")
SETTINGS = Settings(public_url="https://ximler.example", secret_key="k" * 32)


def message(to="ada@example.com", settings=SETTINGS):
    return compose(
        "confirm", settings, to=to, subject="s", key="k", link="https://ximler.example/c", label="c", hours=24
    )


class Scripted(SMTP):
    """A real server that gives the reply of `script` at a step of that name, instead of going on."""

    def __init__(self, handler, **options):
        super().__init__(handler, **options)
        self.greeted = False

    async def push(self, status):
        if not self.greeted:
            self.greeted = True
            status = self.event_handler.script.get("greeting", status)
        return await super().push(status)

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("smtp_") and (reply := super().__getattribute__("event_handler").script.get(name[5:])):

            async def refuse(_arg):
                await self.push(reply)

            return refuse
        return found


class Server:
    def __init__(self):
        self.script = {}
        self.received = []
        self.sent_to = []
        self.options = {"enable_SMTPUTF8": False}
        self.url = ""

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 (aiosmtpd's name)
        if reply := self.script.get("end of data"):
            return reply
        self.sent_to += envelope.rcpt_tos
        self.received.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return "250 taken"

    def session(self):
        return Scripted(self, hostname="test", **self.options)


def smtp_of(server):
    made = Smtp(server.url)
    made._context = default_context()
    return made


@cache
def default_context():
    return ssl.create_default_context()  # takes 0.1 s


@pytest.fixture
async def server():
    made = Server()
    listening = await asyncio.get_running_loop().create_server(made.session, "127.0.0.1", 0)
    made.url = f"smtp://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return path


LATER, FINAL = MailUnavailable, Rejected
STEPS = [
    # (step, reply, what `send` raises; None: the message was handed over)
    # RFC 5321, 3.1 and 4.2.1: 4yz is transient, and rejecting us says nothing about the recipient.
    ("greeting", "421 4.3.2 too busy", LATER),
    ("greeting", "554 5.7.1 your network is blocked", LATER),
    ("EHLO", "421 4.3.0 shutting down", LATER),
    ("EHLO", "550 5.7.1 no", LATER),
    # RFC 3463, 3: X.1.8 is the sender's domain, X.2.2 here the sender's quota.
    ("MAIL", "451 4.3.0 not now", LATER),
    ("MAIL", "452 4.2.2 quota of the sender", LATER),
    ("MAIL", "530 5.7.0 authentication required", LATER),
    ("MAIL", "550 5.1.8 bad sender", LATER),
    ("MAIL", "552 5.2.2 quota of the sender", LATER),
    # RFC 6647 (greylisting), RFC 5321, 4.2.3; Postfix refuses relaying and senders at RCPT.
    ("RCPT", "450 4.2.1 greylisted", LATER),
    ("RCPT", "451 later", LATER),
    ("RCPT", "452 4.2.2 mailbox full", LATER),
    ("RCPT", "550 5.1.1 no such user", FINAL),
    ("RCPT", "550 no such user", FINAL),
    ("RCPT", "550 5.2.1 mailbox disabled", FINAL),
    ("RCPT", "553 5.1.3 malformed address", FINAL),
    ("RCPT", "554 5.7.1 relay access denied", LATER),
    ("RCPT", "530 authentication required", LATER),
    ("RCPT", "550 5.1.8 <no-reply@example.com>: sender address rejected: domain not found", LATER),
    ("RCPT", "503 5.5.1 bad sequence", LATER),
    # RFC 5321, 4.5.4.1: a refused message is kept; filters change, and sizes are the server's.
    ("DATA", "451 4.3.0 not now", LATER),
    ("DATA", "554 5.5.1 no valid recipients", LATER),
    ("end of data", "451 4.7.1 greylisted", LATER),
    ("end of data", "550 5.7.1 looks like spam", LATER),
    ("end of data", "552 5.2.3 too large", LATER),
    ("end of data", "554 transaction failed", LATER),
    # Servers that check recipients after the data; RFC 7505 (null MX).
    ("end of data", "550 5.1.1 no such user", FINAL),
    ("end of data", "550 5.1.10 recipient has a null MX", FINAL),
    # RFC 5321, 4.1.1.10: the message was accepted before.
    ("QUIT", "421 4.3.0 gone", None),
    ("QUIT", "550 5.0.0 rude", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "reply", "outcome"), STEPS)
async def test_only_a_refused_recipient_is_final(server, step, reply, outcome):
    server.script[step] = reply
    if step == "EHLO":
        server.script["HELO"] = reply
    if outcome is None:
        await smtp_of(server).send(message())
        assert len(server.received) == 1
        return
    with pytest.raises(outcome) as raised:
        await smtp_of(server).send(message())
    assert reply.split(maxsplit=2)[0] in raised.value.message
    assert server.received == []
    server.script.clear()
    await smtp_of(server).send(message())  # once the server behaves
    assert server.sent_to == ["ada@example.com"]


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("STARTTLS", "454 4.7.0 TLS not available"),
        ("STARTTLS", "501 5.5.4 syntax error"),
        ("AUTH", "454 4.7.0 temporary failure"),
        ("AUTH", "535 5.7.8 wrong password"),
        ("AUTH", "534 5.7.9 application password required"),
        ("none", ""),
    ],
)
async def test_a_server_that_rejects_tls_or_the_password_is_tried_again(server, certificate, step, reply):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.options |= {
        "tls_context": context,
        "require_starttls": True,
        "auth_required": True,
        "authenticator": lambda *_: AuthResult(success=True),
    }
    server.script[step] = reply
    smtp = Smtp(server.url.replace("//", "//me:secret@"))
    smtp._context = ssl.create_default_context(cafile=str(certificate))
    if step == "none":
        await smtp.send(message())
        assert server.sent_to == ["ada@example.com"]
        return
    with pytest.raises(MailUnavailable):
        await smtp.send(message())
    assert server.received == []


@pytest.mark.slow
@pytest.mark.parametrize("smtputf8", [True, False])
@pytest.mark.parametrize(
    ("to", "ascii_only", "envelope"),
    [  # RFC 5890: A-labels where they suffice; RFC 6531: SMTPUTF8 for the local part
        ("ada@example.com", True, "ada@example.com"),
        ("x@münchen.de", True, "x@xn--mnchen-3ya.de"),
        ("x@xn--mnchen-3ya.de", True, "x@xn--mnchen-3ya.de"),
        ("x@日本語.example", True, "x@xn--wgv71a119e.example"),
        ("jörg@example.com", False, "jörg@example.com"),
        ("jörg@münchen.de", False, "jörg@münchen.de"),
    ],
)
async def test_internationalised_addresses(server, smtputf8, to, ascii_only, envelope):
    server.options["enable_SMTPUTF8"] = smtputf8
    if ascii_only or smtputf8:
        await smtp_of(server).send(message(to))
        assert server.sent_to == [envelope]
    else:
        with pytest.raises(Rejected, match="SMTPUTF8"):
            await smtp_of(server).send(message(to))


REGISTERED = [
    # (address as typed, SMTPUTF8, step, reply, the job's status, a part of its error)
    # RFC 5890, 2.3.2.1: a domain travels as A-labels.
    ("x@münchen.de", False, "", "", "DONE", ""),
    ("X@XN--MNCHEN-3YA.DE", False, "", "", "DONE", ""),
    ("x@faß.de", False, "", "", "DONE", ""),
    # RFC 6531, 3.2: without the extension such an address cannot be reached, so retries are useless.
    ("jörg@example.com", False, "", "", "DEAD", "does not support internationalised addresses (SMTPUTF8)"),
    ("jörg@münchen.de", False, "", "", "DEAD", "SMTPUTF8"),
    ("jörg@example.com", True, "", "", "DONE", ""),
    ("jörg@example.com", True, "RCPT", "550 5.1.1 no such user", "DEAD", "550 5.1.1"),
    # RFC 5321, 4.2.1: of 5yz replies only those about the recipient are final.
    ("ada@example.com", False, "MAIL", "550 5.1.8 bad sender", "PENDING", "550 5.1.8"),
    ("ada@example.com", False, "RCPT", "550 5.1.1 no such user", "DEAD", "550 5.1.1"),
    ("ada@example.com", False, "RCPT", "451 4.7.1 greylisted", "PENDING", "451 4.7.1"),
    ("ada@example.com", False, "DATA", "554 5.5.1 no valid recipients", "PENDING", "554 5.5.1"),
    ("ada@example.com", False, "end of data", "550 5.7.1 looks like spam", "PENDING", "550 5.7.1"),
]


@pytest.mark.slow
async def test_a_registration_is_mailed_tried_again_or_given_up_with_the_reason(server, database, settings):
    keyring = Keyring(settings)
    worker = worker_of(database, settings, keyring, smtp_of(server))
    for typed, smtputf8, step, reply, status, reason in REGISTERED:
        await database.raw.outbox.delete_many({})
        server.options["enable_SMTPUTF8"] = smtputf8
        server.script = {step: reply}
        await registration.register(database, keyring, ANYBODY, name="Ada", email=typed, password=PASSWORD)
        await worker.run_due()
        job = await database.raw.outbox.find_one({"kind": "accounts.send_confirmation"})
        job = job or {"status": "DONE"}  # done, and removed
        assert job["status"] == status, (typed, step, job)
        assert reason in job.get("lastError", ""), (typed, step, job)
    keyring.close()


async def test_a_sender_with_an_internationalised_domain_needs_no_smtputf8(server):
    settings = Settings(public_url="https://münchen.example", mail_from="Jörg <post@münchen.de>", secret_key="k" * 32)
    await smtp_of(server).send(message(settings=settings))
    (arrived,) = server.received
    assert str(arrived["From"]) == "Jörg <post@xn--mnchen-3ya.de>"
    assert arrived["Message-ID"].isascii()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["no address", "@", "a@b@c d", ""])
async def test_an_invalid_address_is_rejected_permanently(server, to):
    with pytest.raises(Rejected):
        await smtp_of(server).send(message(to))


def test_a_reply_is_final_by_its_enhanced_status_code():
    assert is_final(550, "5.1.1 unknown", at_recipient=False)
    assert not is_final(550, "unknown: see 5.1.1", at_recipient=False)
    assert not is_final(450, "4.1.1 unknown", at_recipient=True)
    assert not is_final(553, "5.1.7 sender's address", at_recipient=False)
