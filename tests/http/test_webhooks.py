"""Stripe's events over HTTP: verified on the raw body, stored, acknowledged."""

import hashlib
import hmac
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.serving import Client, serve

from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.schema.billing_event import BILLING_EVENTS

SECRET = "whsec_of_the_endpoint"
BODY = msgspec.json.encode(
    {
        "id": "evt_1",
        "object": "event",
        "type": "payment_intent.succeeded",
        "livemode": False,
        "data": {"object": {"id": "pi_1", "object": "payment_intent", "metadata": {"ximler": "charge"}}},
    }
)


@pytest.fixture
async def paying(settings: Settings, database: Database, mongodb_uri: str) -> AsyncIterator[Client]:
    """An installation whose payments are Stripe's."""
    given = {"stripe_key": "sk_test_of_nobody", "stripe_webhook_secrets": ("whsec_of_tomorrow", SECRET)}
    async with serve(msgspec.structs.replace(settings, database=database.name, **given), mongodb_uri) as app:
        client = Client(app)
        yield client
        await client.http.aclose()


def sign(body: bytes, secret: str = SECRET, *, age_s: int = 0) -> str:
    moment = int(time.time()) - age_s
    return f"t={moment},v1={hmac.new(secret.encode(), b'%d.' % moment + body, hashlib.sha256).hexdigest()}"


async def send(client: Client, body: bytes, signature: str, **headers: str) -> int:
    headers = {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8", **headers}
    return (await client.http.post("/webhooks/stripe", content=body, headers=headers)).status_code


@pytest.mark.slow
async def test_an_event_is_stored_once_with_one_command(paying: Client, database: Database) -> None:
    assert await send(paying, BODY, sign(BODY, "whsec_of_tomorrow")) == 200
    with round_trips() as trips:
        assert await send(paying, BODY, sign(BODY)) == 200  # replayed
    assert trips == [("insert", "billingevents")]
    (event,) = await database[BILLING_EVENTS].find({})
    assert (event.id, event.kind, event.object_id, event.reference) == ("evt_1", "intent.changed", "pi_1", "charge")


@pytest.mark.slow
async def test_a_delivery_that_is_not_stripes_is_refused(paying: Client, client: Client, database: Database) -> None:
    huge = b'{"id":"' + b"x" * 10_000_000 + b'"}'
    answers = [
        await send(paying, BODY, ""),
        await send(paying, BODY, sign(BODY, "whsec_of_another_endpoint")),
        await send(paying, BODY, sign(BODY, age_s=310)),
        await send(paying, BODY.replace(b"evt_1", b"evt_2"), sign(BODY)),
        await send(paying, b"{}", sign(b"{}")),
        await send(paying, huge, sign(huge)),
        await send(paying, BODY, sign(BODY), **{"Content-Encoding": "gzip"}),
        await send(client, BODY, sign(BODY)),  # an installation without Stripe
        (await paying.http.get("/sandbox/checkout/cs_x")).status_code,
    ]
    assert answers == [400, 400, 400, 400, 400, 413, 415, 404, 404]
    assert await database[BILLING_EVENTS].find({}) == []
