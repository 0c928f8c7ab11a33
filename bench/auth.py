"""Topic `auth`: authentication in this process, key by key, and over HTTP:
with a key, with a session, with neither."""

import asyncio
import hashlib
import time
from contextlib import suppress
from statistics import median

from bench.contest import Contestant, compete, ratio
from bench.load import burst
from bench.report import Figure, Table, spread, us
from bench.served import SECRET, served
from bench.setup import Setup
from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.accounts.session_authentication import SessionAuthenticator
from ximler.apikeys import keys, tokens
from ximler.apikeys.verification import ApiKeyRefused, Verifier
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = ["run"]

CACHED, COLD = "API key, known", "API key, not known before"
GARBAGE, SESSION = "malformed key, refused by its checksum", "session, known"
HASH = "SHA-256 of the key, with hashlib"
OPEN, KEYED, SIGNED_IN = "without authentication", "with an API key, metered", "with a session's token"
ADDRESS = "192.0.2.1"
ANSWER = b'{"data":{"__typename":"Query"}}'
BATCH, COLD_BATCH, REQUESTS, CONNECTIONS = 20_000, 100, 4000, 16


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database:
        settings = Settings(mongodb_uri=setup.uri, database=database.name, secret_key=SECRET)
        user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
        feed = Feed(database)
        running = asyncio.create_task(feed.run(asyncio.Event()))
        try:
            return [
                await _inside(setup, database, settings, user, feed),
                await _over_http(setup, database, settings, user),
            ]
        finally:
            running.cancel()
            await asyncio.wait([running], timeout=1)


async def _make(database: Database, user: User) -> str:
    actor = Actor(kind="operator", via="cli")
    return (await keys.create(database, actor, name="bench", permissions=["account:read"], user_id=user.id)).secret


async def _inside(setup: Setup, database: Database, settings: Settings, user: User, feed: Feed) -> Table:
    keyring = Keyring(settings)
    verifier, authenticator = Verifier(database, feed), SessionAuthenticator(database, keyring, settings, feed)
    key = await _make(database, user)
    token = (await sessions.start(database, keyring, settings, Actor(), user)).token
    origin = Actor(address=ADDRESS)
    garbage = tokens.mint()[:-1] + "!"
    await feed.caught_up()
    with round_trips() as trips:
        await verifier.verify(key, address=ADDRESS)
    cold_trips = len(trips)

    async def known() -> float:
        await verifier.verify(key, address=ADDRESS)
        began = time.perf_counter()
        for _ in range(BATCH):
            await verifier.verify(key, address=ADDRESS)
        return (time.perf_counter() - began) / BATCH

    async def unknown() -> float:
        taken = 0.0
        for _ in range(COLD_BATCH):
            fresh = Verifier(database, feed)
            began = time.perf_counter()
            await fresh.verify(key, address=ADDRESS)
            taken += time.perf_counter() - began
        return taken / COLD_BATCH

    async def malformed() -> float:
        began = time.perf_counter()
        for _ in range(BATCH):
            with suppress(ApiKeyRefused):
                await verifier.verify(garbage, address=ADDRESS)
        return (time.perf_counter() - began) / BATCH

    async def hashing() -> float:
        encoded = key.encode()
        began = time.perf_counter()
        for _ in range(BATCH):
            hashlib.sha256(encoded).digest()
        return (time.perf_counter() - began) / BATCH

    async def session() -> float:
        await authenticator.authenticate(token, origin)
        began = time.perf_counter()
        for _ in range(BATCH):
            await authenticator.authenticate(token, origin)
        return (time.perf_counter() - began) / BATCH

    pairs = ((CACHED, known), (COLD, unknown), (GARBAGE, malformed), (SESSION, session), (HASH, hashing))
    samples = await compete([Contestant(name, work) for name, work in pairs], setup.rounds(12))
    keyring.close()
    return Table(
        title="auth: in one process",
        figures=[
            Figure(what=f"a known API key ÷ {HASH}", value=ratio(samples[CACHED], samples[HASH]), most=5),
            Figure(what="a known session ÷ SHA-256 of a key", value=ratio(samples[SESSION], samples[HASH])),
            Figure(what="round trips of a key seen for the first time", value=cold_trips, unit="", exactly=1),
        ],
        columns=("", "each", "spread"),
        rows=[(name, us(median(taken)), spread(taken)) for name, taken in samples.items()],
        notes=[
            f"{len(samples[CACHED])} rounds of {BATCH:,}, {COLD_BATCH} where the database is read.",
        ],
        samples=samples,
    )


async def _over_http(setup: Setup, database: Database, settings: Settings, user: User) -> Table:
    key = await _make(database, user)
    keyring = Keyring(settings)
    token = (await sessions.start(database, keyring, settings, Actor(), user)).token
    keyring.close()
    now = database.clock.now()
    await database.subscriptions.insert(
        Subscription(user_id=user.id, plan_id="enterprise", status="ACTIVE", start_date=now, price=99)
    )
    async with served(setup, database, log_level="warning") as (port, _):
        body = b'{"query":"{ __typename }"}'
        head = (
            f"POST /graphql HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
        ).encode()
        requests = {
            OPEN: head + b"\r\n" + body,
            KEYED: head + f"authorization: Bearer {key}\r\n".encode() + b"\r\n" + body,
            SIGNED_IN: head + f"authorization: Bearer {token}\r\n".encode() + b"\r\n" + body,
        }

        def contestant(name: str) -> Contestant:
            async def send() -> float:
                return (
                    await burst(port, requests[name], ends=ANSWER, requests=REQUESTS, connections=CONNECTIONS)
                ).seconds

            return Contestant(name, send)

        samples = await compete([contestant(name) for name in requests], setup.rounds(16))
    return Table(
        title="auth: over HTTP",
        figures=[
            Figure(what=f"requests a second {name} ÷ {OPEN}", value=ratio(samples[OPEN], samples[name]), least=0.8)
            for name in (KEYED, SIGNED_IN)
        ],
        columns=("", "requests a second", "spread"),
        rows=[(name, f"{REQUESTS / median(taken):,.0f}", spread(taken)) for name, taken in samples.items()],
        notes=[
            f"`POST /graphql` with `{{ __typename }}` to `ximler up` (uvicorn, one process): {len(samples[OPEN])} rounds of "
            f"{REQUESTS:,} requests on {CONNECTIONS} connections, in turn.",
        ],
        samples=samples,
    )
