"""The application as its users meet it: over ASGI, with its lifespan run,
and a client that remembers its token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from litestar.types import ASGIApp

from ximler.app import create
from ximler.core.settings import Settings

__all__ = ["Answer", "Client", "serve"]

PASSWORD = "correct horse battery"
REGISTER = "mutation ($input: RegisterInput!) { register(input: $input) { accepted } }"
CONFIRM = """mutation ($token: String!, $password: String!) {
  confirmEmail(token: $token, password: $password) { token user { id email } }
}"""


@asynccontextmanager
async def serve(settings: Settings, uri: str) -> AsyncIterator[ASGIApp]:
    """The application between start-up and shutdown."""
    app = create(settings, uri=uri)
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    running = asyncio.create_task(app(scope, inbox.get, outbox.put))  # type: ignore[arg-type]  # any message

    async def step(name: str) -> None:
        await inbox.put({"type": f"lifespan.{name}"})
        said = await outbox.get()
        if said["type"] != f"lifespan.{name}.complete":
            await running
            raise RuntimeError(said.get("message", said["type"]))

    await step("startup")
    try:
        yield app
    finally:
        await step("shutdown")
        await running


class Answer(msgspec.Struct):
    """What GraphQL said. `data` and `errors` as they came; the rest for short assertions."""

    status: int
    headers: httpx.Headers
    data: Any = None
    errors: list[dict[str, Any]] = []

    @property
    def code(self) -> str | None:
        """Of the first error."""
        return self.errors[0]["extensions"]["code"] if self.errors else None

    @property
    def fields(self) -> dict[str, str]:
        return self.errors[0]["extensions"].get("fields", {}) if self.errors else {}

    def __getitem__(self, name: str) -> Any:
        """A root field of an answer without errors."""
        assert not self.errors, self.errors
        return self.data[name]


class Client:
    """Somebody with an HTTP client; `token` once they are signed in."""

    def __init__(self, app: ASGIApp, *, token: str | None = None, address: str = "192.0.2.1") -> None:
        transport = httpx.ASGITransport(app, client=(address, 50000))  # type: ignore[arg-type]  # typed by two libraries
        self.http = httpx.AsyncClient(transport=transport, base_url="http://ximler.test", timeout=60)
        self.app = app
        self.token = token

    async def ask(self, query: str, /, **variables: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return self.read(
            await self.http.post("/graphql", json={"query": query, "variables": variables}, headers=headers)
        )

    @staticmethod
    def read(response: httpx.Response) -> Answer:
        body = response.json()
        return Answer(response.status_code, response.headers, body.get("data"), body.get("errors", []))

    async def register(self, email: str, *, name: str = "Ada", password: str = PASSWORD) -> str:
        """The confirmation link's token."""
        answer = await self.ask(REGISTER, input={"name": name, "email": email, "password": password})
        assert answer["register"] == {"accepted": True}
        return await self.link()

    async def link(self) -> str:
        """The token of the newest registration's link, which else only a mailbox would tell."""
        state = self.app._app.state  # type: ignore[attr-defined]  # the application inside `Requests`
        newest = await state.database.raw["registrations"].find_one({}, sort=[("_id", -1)])
        return str(state.keyring.sign("confirm", newest["_id"]))

    async def confirm(self, token: str, password: str = PASSWORD) -> Answer:
        return await self.ask(CONFIRM, token=token, password=password)

    async def sign_in(self, email: str, password: str = PASSWORD) -> Answer:
        """Keeps the token for what follows."""
        self.token = None
        answer = await self.ask(
            "mutation ($email: String!, $password: String!) {"
            " signIn(email: $email, password: $password) { token expiresAt user { id email } } }",
            email=email,
            password=password,
        )
        self.token = answer.data["signIn"]["token"] if answer.data else None
        return answer

    async def join(self, email: str) -> "Client":
        """Register, confirm and sign in."""
        confirmed = await self.confirm(await self.register(email))
        self.token = confirmed["confirmEmail"]["token"]
        return self

    async def create(self, name: str = "Project", **more: Any) -> Answer:
        return await self.ask(
            "mutation ($input: CreateProjectInput!) { createProject(input: $input) { id name storageSize } }",
            input={"name": name, **more},
        )
