"""The application in this process, and its client:
ASGI called directly, so that no HTTP client is measured."""

from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import msgspec
from tests.serving import serve

from bench.setup import Setup
from ximler.accounts.keyring import Keyring
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.registration import REGISTRATIONS, Registration

__all__ = ["PASSWORD", "Client", "Town", "post", "town"]

ASGI = Callable[..., Any]
PASSWORD = "correct horse battery"


async def post(app: ASGI, body: bytes, *, token: str | None = None, path: str = "/graphql") -> tuple[int, bytes]:
    """One POST of JSON; status and body of the answer."""
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    if token:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("192.0.2.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    status = 0
    chunks: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(chunks)


class Client:
    """A user; `token` is set after sign-in."""

    def __init__(self, app: ASGI, token: str | None = None) -> None:
        self._app = app
        self.token = token

    async def ask(self, query: str, /, *, code: str | None = None, **variables: Any) -> Any:
        """The `data`; fails unless the answer's error is `code`."""
        body = msgspec.json.encode({"query": query, "variables": variables})
        status, answer = await post(self._app, body, token=self.token)
        said = msgspec.json.decode(answer)
        got = said["errors"][0]["extensions"]["code"] if said.get("errors") else None
        assert got == code, f"{status}: {said}"
        return said.get("data")


class Town:
    """A running application, its database, and its people."""

    def __init__(self, app: ASGI, database: Database, settings: Settings) -> None:
        self.app = app
        self.database = database
        self.keyring = Keyring(settings)

    async def registered(self, email: str) -> str:
        """A confirmation link's token, which is otherwise only in the mail."""
        password = await self.keyring.hash_password(PASSWORD)
        expires_at = self.database.clock.now().replace(year=9999)
        made = await self.database[REGISTRATIONS].insert(
            Registration(name="Ada", email=email, password=password, expires_at=expires_at)
        )
        return self.keyring.sign("confirm", made.id)

    async def join(self) -> Client:
        """A new user, signed in."""
        client, email = Client(self.app), f"{uuid4().hex}@example.com"
        confirmed = await client.ask(CONFIRM, token=await self.registered(email), password=PASSWORD)
        client.token = confirmed["confirmEmail"]["token"]
        return client


CONFIRM = (
    "mutation ($token: String!, $password: String!) { confirmEmail(token: $token, password: $password) { token } }"
)
SIGN_IN = "mutation ($email: String!, $password: String!) { signIn(email: $email, password: $password) { token } }"


@asynccontextmanager
async def town(setup: Setup) -> AsyncIterator[Town]:
    """The application with its default settings, on an initialised database of its own."""
    async with setup.database(initialised=True) as database:
        settings = Settings(
            mongodb_uri=setup.uri,
            database=database.name,
            secret_key=uuid4().hex,
            environment="development",
            worker=False,
        )
        async with serve(settings, setup.uri) as app:
            made = Town(app, database, settings)
            try:
                yield made
            finally:
                made.keyring.close()
