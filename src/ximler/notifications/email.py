"""E-mail: composed from templates, sent by SMTP or, in development, written to a folder.

`send` hands the message over or raises; the outbox retries. The Message-ID is derived from the job, so that
mail clients can recognise a duplicate (the server accepted the message, but its response was lost).
"""

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import AsyncIterator
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import parseaddr
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
import idna
import jinja2
import structlog

from ximler.core import names
from ximler.core.errors import Invalid, Unavailable
from ximler.core.networks import parse_address
from ximler.core.settings import Settings, SettingsError
from ximler.schema.user import User

__all__ = [
    "Folder",
    "MailUnavailable",
    "Mailer",
    "Rejected",
    "Smtp",
    "compose",
    "deliverable",
    "greeting",
    "is_final",
    "mailer",
]

_log = structlog.get_logger("ximler.mail")
_TIMEOUT_S = 30.0
_LINK = re.compile(r"https?://\S+")
_OPTIONAL = "starttls=optional"
_ENHANCED = re.compile(r"\s*[245]\.([0-7])\.(\d{1,3})\b")
_ABOUT_SENDER = frozenset({("1", "7"), ("1", "8")})  # bad sender's mailbox, or its domain
_ABOUT_US = frozenset(
    {500, 501, 502, 503, 504, 530, 534, 535, 538}
)  # syntax, sequence, authentication (RFC 5321, RFC 4954)

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("ximler.notifications"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class MailUnavailable(Unavailable):
    """The message was not accepted. Retry later."""

    code = "MAIL_UNAVAILABLE"


class Rejected(Invalid):
    """Permanent failure for this recipient: the address does not exist or cannot be served."""

    code = "MAIL_REJECTED"


class Mailer(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises MailUnavailable, Rejected."""


def mailer(settings: Settings) -> Mailer:
    """SMTP by `smtp_url`; without it, messages are written to the folder `mail` in the data directory. Raises
    SettingsError.
    """
    if settings.smtp_url:
        return Smtp(settings.smtp_url)
    return Folder(settings.data_path / "mail", log_links=settings.development)


def compose(
    template: str,
    settings: Settings,
    *,
    to: str,
    subject: str,
    key: str,
    link: str | None = None,
    label: str = "",
    **values: object,
) -> EmailMessage:
    """A message with a plain part, from `<template>.txt`, and an HTML part of the same paragraphs.

    The paragraph that consists of `link` becomes a button labelled `label`; no other text becomes a link. The
    Message-ID is derived from `key`.
    """
    host = _ascii_domain(urlsplit(settings.base_url).hostname or "localhost")
    message = EmailMessage(policy=SMTP)
    name, sender = parseaddr(settings.mail_from or f"Ximler <no-reply@{host}>")
    message["From"] = Address(name, *deliverable(sender).rsplit("@", 1))
    message["To"] = deliverable(to)
    message["Subject"] = subject
    message["Message-ID"] = f"<{hashlib.sha256(key.encode()).hexdigest()[:32]}@{host}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies
    text = _templates.get_template(f"{template}.txt").render(link=link, **values)
    site = settings.app_url or settings.base_url
    message.set_content(f"{text}\n\nSent by {site}\n")
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    html = _templates.get_template("base.html").render(
        subject=subject, site=site, paragraphs=paragraphs, link=link, label=label
    )
    message.add_alternative(html, subtype="html")
    return message


def greeting(user: User) -> str:
    """`Hello Ada,`; without the name if the address is unconfirmed or the name does not pass today's
    validation.

    The name is untrusted text: it must not reach a stranger's mailbox, nor become a link.
    """
    if user.email_verified:
        with contextlib.suppress(Invalid):
            return f"Hello {names.checked(user.name, most=names.MAX_PERSON)},"
    return "Hello,"


def deliverable(address: str) -> str:
    """The address for the envelope: its domain as an A-label if the local part is ASCII (RFC 5890).

    Servers without SMTPUTF8 accept that. The domain of `jörg@münchen.de` stays, because it needs SMTPUTF8 in
    any case.
    """
    local, _, domain = address.rpartition("@")
    return f"{local}@{_ascii_domain(domain)}" if local.isascii() else address


def _ascii_domain(domain: str) -> str:
    try:
        return domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        return domain


class Folder:
    """Writes each message to an .eml file. With `log_links`, for development, its link is logged too."""

    def __init__(self, folder: Path, *, log_links: bool = False) -> None:
        self._folder = folder
        self._log_links = log_links

    async def send(self, message: EmailMessage) -> None:
        path = await asyncio.to_thread(self._write, message)
        link = {}
        # Never in production: the link opens an account.
        if self._log_links and (body := message.get_body(("plain",))) and (found := _LINK.search(body.get_content())):
            link["link"] = found[0]
        _log.info("e-mail written", to=str(message["To"]), subject=str(message["Subject"]), file=str(path), **link)

    def _write(self, message: EmailMessage) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{str(message['Message-ID']).strip('<>').split('@')[0]}.eml"
        partial = path.with_suffix(".partial")
        partial.write_bytes(message.as_bytes())
        partial.chmod(0o600)
        partial.replace(path)
        return path


class Smtp:
    """`smtp://user:password@host:587` (with STARTTLS) or `smtps://…:465`.

    STARTTLS is required with a password, and for every host that is not on a private network.
    `smtp://host?starttls=optional` makes it optional for a server without a password.
    """

    def __init__(self, url: str) -> None:
        problem = SettingsError(
            "XIMLER_SMTP_URL must look like smtp://user:password@host:587 or smtps://user:password@host:465",
            fields={"smtp_url": "is not a usable SMTP URL"},
        )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise problem from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or parts.query not in ("", _OPTIONAL):
            raise problem
        self._host = parts.hostname
        self._port = port or (465 if parts.scheme == "smtps" else 587)
        self._tls = parts.scheme == "smtps"
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        private = parts.query == _OPTIONAL or _is_private(self._host)
        self._starttls = False if self._tls else (None if private and self._password is None else True)
        self._context: ssl.SSLContext | None = None

    async def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises Rejected if the recipient is permanently refused, MailUnavailable for
        all other failures: a server that is busy, over quota, misconfigured or rejects the password says
        nothing about the recipient.
        """
        async with self._connected() as client:
            await self._deliver(client, message)

    async def check(self) -> str:
        """Connect, negotiate TLS and sign in as for a message, without sending one.
        Returns a description of the connection. Raises MailUnavailable.
        """
        async with self._connected() as client:
            encrypted = client.get_transport_info("sslcontext") is not None
        signed_in = f", signed in as {self._user}" if self._user else ""
        return f"{self._host}:{self._port}, {'TLS' if encrypted else 'not encrypted'}{signed_in}"

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiosmtplib.SMTP]:
        """A session for one message. Failures inside the block, too, become MailUnavailable."""
        if self._context is None:  # reads the certificate authorities: 0.1 s
            self._context = await asyncio.to_thread(ssl.create_default_context)
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            use_tls=self._tls,
            start_tls=self._starttls,
            tls_context=self._context,
            username=self._user,
            password=self._password,
            timeout=_TIMEOUT_S,
        )
        try:
            await client.connect()
            yield client
        except aiosmtplib.SMTPResponseException as error:
            raise MailUnavailable(f"The mail server answered {error.code} {error.message}") from error
        except (aiosmtplib.SMTPException, OSError, ssl.SSLError) as error:
            raise MailUnavailable(f"The mail server at {self._host}:{self._port} cannot be used: {error}") from error
        finally:
            with contextlib.suppress(aiosmtplib.SMTPException, OSError, ssl.SSLError):
                await client.quit()  # the message was accepted or rejected before
            client.close()

    async def _deliver(self, client: aiosmtplib.SMTP, message: EmailMessage) -> None:
        to = message["To"]
        try:
            await client.send_message(message)
        except aiosmtplib.SMTPRecipientsRefused as refused:
            first = refused.recipients[0]
            if is_final(first.code, first.message, at_recipient=True):
                raise Rejected(f"The mail server refuses {to}: {first.code} {first.message}") from refused
            raise MailUnavailable(f"The mail server does not take {to} now: {first.code} {first.message}") from refused
        except aiosmtplib.SMTPDataError as error:
            if is_final(error.code, error.message, at_recipient=False):
                raise Rejected(f"The mail server refuses {to}: {error.code} {error.message}") from error
            raise
        except aiosmtplib.SMTPNotSupported as error:
            raise Rejected(
                f"{to} cannot receive mail from here: the part before its @ is not ASCII, and the mail server does not support "
                "internationalised addresses (SMTPUTF8)"
            ) from error
        except ValueError as error:
            raise Rejected(f"{to} is not an address that mail can be sent to: {error}") from error


def is_final(code: int, text: str, *, at_recipient: bool) -> bool:
    """Whether a reply means that this recipient will never receive mail.

    At RCPT every 5xx is final, unless its enhanced status code (RFC 3463) blames the system, the network, the
    protocol, a policy or the sender (5.3, 5.4, 5.5, 5.7, 5.1.7, 5.1.8: "relay access denied", "sender's
    domain not found"). After the message only the rest of 5.1 is final: bad mailbox, bad domain, mailbox
    moved.
    """
    enhanced = _ENHANCED.match(text)
    subject, detail = enhanced.groups() if enhanced else (None, None)
    if code < 500 or code in _ABOUT_US or (subject, detail) in _ABOUT_SENDER:
        return False
    return subject not in {"3", "4", "5", "7"} if at_recipient else subject == "1"


def _is_private(host: str) -> bool:
    """A loopback or private address, or a name outside public DNS."""
    address = parse_address(host)
    if address is not None:
        return address.is_private
    return "." not in host or host.endswith((".localhost", ".local", ".internal", ".test"))
