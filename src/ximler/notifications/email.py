"""E-mail: composed from templates, sent by SMTP or, in development, written to a folder.

`send` either hands the message over or raises; retrying is the outbox's. A message's id is derived from its job, so that a
message that went out twice (the server took it, and the answer was lost) can be recognised as one.
"""

import asyncio
import hashlib
import re
import ssl
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
import jinja2
import structlog

from ximler.core.errors import Invalid, Unavailable
from ximler.core.settings import Settings, SettingsError

__all__ = ["Folder", "MailUnavailable", "Mailer", "Rejected", "Smtp", "compose", "mailer"]

_log = structlog.get_logger("ximler.mail")
_TIMEOUT_S = 30.0
_LINK = re.compile(r"https?://\S+")

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("ximler.notifications"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class MailUnavailable(Unavailable):
    """The server did not take it now: worth another try."""

    code = "MAIL_UNAVAILABLE"


class Rejected(Invalid):
    """The server will never take it: the address does not exist, or is refused."""

    code = "MAIL_REJECTED"


class Mailer(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises MailUnavailable, Rejected."""


def mailer(settings: Settings) -> Mailer:
    """By `smtp_url`; without one, messages are written to the folder `mail` in the data directory. Raises SettingsError."""
    if settings.smtp_url:
        return Smtp(settings.smtp_url)
    return Folder(settings.data_path / "mail", log_links=settings.development)


def compose(template: str, settings: Settings, *, to: str, subject: str, key: str, **values: object) -> EmailMessage:
    """A message with a plain and an HTML part, from `<template>.txt` and `<template>.html`.

    `key` says which occasion it is for: the same key makes the same Message-ID.
    """
    host = urlsplit(settings.base_url).hostname or "localhost"
    message = EmailMessage(policy=SMTP)
    message["From"] = settings.mail_from or f"Ximler <no-reply@{host}>"
    message["To"] = to
    message["Subject"] = subject
    message["Message-ID"] = f"<{hashlib.sha256(key.encode()).hexdigest()[:32]}@{host}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday notes in answer
    values = {"subject": subject, "site": settings.base_url, **values}
    message.set_content(_templates.get_template(f"{template}.txt").render(values))
    message.add_alternative(_templates.get_template(f"{template}.html").render(values), subtype="html")
    return message


class Folder:
    """Every message becomes an .eml file. With `log_links`, for development, its link is logged too."""

    def __init__(self, folder: Path, *, log_links: bool = False) -> None:
        self._folder = folder
        self._log_links = log_links

    async def send(self, message: EmailMessage) -> None:
        path = await asyncio.to_thread(self._write, message)
        link = {}
        # What a developer waits for, and whoever else reads the log must not have: it opens an account.
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
    """`smtp://user:password@host:587` (STARTTLS where the server offers it, required with a password) or `smtps://…:465`."""

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
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise problem
        self._host = parts.hostname
        self._port = port or (465 if parts.scheme == "smtps" else 587)
        self._tls = parts.scheme == "smtps"
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None

    async def send(self, message: EmailMessage) -> None:
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            use_tls=self._tls,
            start_tls=True if self._password and not self._tls else None,
            username=self._user,
            password=self._password,
            timeout=_TIMEOUT_S,
        )
        try:
            async with client:
                await client.send_message(message)
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [refused.code for refused in error.recipients]
            if all(code >= 500 for code in codes):
                raise Rejected(f"The mail server refuses {message['To']}: {error.recipients[0].message}") from error
            raise MailUnavailable(f"The mail server does not take {message['To']} now") from error
        except aiosmtplib.SMTPResponseException as error:
            if error.code >= 500 and not isinstance(error, aiosmtplib.SMTPAuthenticationError):
                raise Rejected(f"The mail server refuses the message: {error.code} {error.message}") from error
            raise MailUnavailable(f"The mail server answered {error.code}") from error
        except (aiosmtplib.SMTPException, OSError, ssl.SSLError) as error:
            raise MailUnavailable(f"The mail server at {self._host}:{self._port} cannot be reached: {error}") from error
