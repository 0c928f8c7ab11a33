"""The payment provider of an installation:
Stripe where it has a key, else the sandbox, in development only."""

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
    """Raises NoProvider without a key outside of development."""
    if settings.stripe_key is not None:
        from ximler.billing.stripe import of_process  # here, because the library takes 0.3 s to import

        return of_process(settings)
    return sandbox(database, settings)


def sandbox(database: Database, settings: Settings) -> Sandbox:
    """The sandbox, whose events come to this installation's inbox. Raises NoProvider where there is none."""
    if settings.stripe_key is not None:
        raise NoProvider("Payments are Stripe's: there is no sandbox")
    if not settings.development:
        raise NoProvider(
            "No payment provider is configured: set XIMLER_STRIPE_KEY (the sandbox is for development only)"
        )
    secret = hmac.digest(settings.secret_keys[0], b"ximler sandbox events", "sha256")

    async def deliver(body: bytes, signature: str) -> None:
        await events.receive(database, made, body, signature)

    made = Sandbox(database, secret=secret, base_url=settings.base_url, deliver=deliver)
    return made
