"""Where mail arrives in tests, and the worker that sends it."""

import asyncio
import re
from email.message import EmailMessage

import msgspec

from ximler.accounts.keyring import Keyring
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.notifications.email import MailUnavailable
from ximler.worker import Tools, Worker

__all__ = ["Mailbox", "worker_of"]


class Mailbox:
    """Takes messages, or fails `failures` times first."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.failures = 0
        self.arrived = asyncio.Event()

    async def send(self, message: EmailMessage) -> None:
        if self.failures:
            self.failures -= 1
            raise MailUnavailable("not now")
        self.messages.append(message)
        self.arrived.set()

    @property
    def last_token(self) -> str:
        body = self.messages[-1].get_body(("plain",))
        assert body is not None
        found = re.search(r"token=([\w-]+)", body.get_content())
        assert found is not None
        return found[1]


def worker_of(
    database: Database, settings: Settings, keyring: Keyring, mailbox: Mailbox, *, public_url: str | None = None
) -> Worker:
    settings = msgspec.structs.replace(settings, public_url=public_url)
    return Worker(Tools(database=database, settings=settings, keyring=keyring, mailer=mailbox))
