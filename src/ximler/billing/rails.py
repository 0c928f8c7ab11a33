"""The payment provider of an installation: the sandbox in development."""

import hmac

from ximler.billing import events
from ximler.billing.provider import Provider
from ximler.billing.sandbox import Sandbox
from ximler.core.errors import Unavailable
from ximler.core.settings import Settings
from ximler.database import Database

__all__ = ["NoProvider", "rail", "sandbox"]


class NoProvider(Unavailable):
    code = "NO_PAYMENT_PROVIDER"


def rail(database: Database, settings: Settings) -> Provider:
    """Raises NoProvider outside of development."""
    return sandbox(database, settings)


def sandbox(database: Database, settings: Settings) -> Sandbox:
    """The sandbox, whose events come to this installation's inbox. Raises NoProvider outside of development."""
    if not settings.development:
        raise NoProvider("No payment provider is configured: the sandbox is for development only")
    secret = hmac.digest(settings.secret_keys[0], b"ximler sandbox events", "sha256")

    async def deliver(body: bytes, signature: str) -> None:
        await events.receive(database, made, body, signature)

    made = Sandbox(database, secret=secret, base_url=settings.base_url, deliver=deliver)
    return made
