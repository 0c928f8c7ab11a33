"""A small schema with everything the engine does, and ways to ask it."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from structlog.testing import capture_logs

from ximler.core.errors import (
    Conflict,
    Forbidden,
    Invalid,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from ximler.graphql.engine import Connection, Engine, GraphQLApp, Limits, Resolvers, build, page_size

SDL = """
extend type Query {
  hello(name: String = "you"): String!
  users(first: Int = 20, after: String): UserConnection!
  allUsers: [User!]!
  user(id: ID!): User
  fail(kind: String!): String
  echo(value: JSON): JSON
}

extend type Mutation {
  append(item: String!): [String!]!
}

type UserConnection {
  edges: [UserEdge!]!
  nodes: [User!]!
  pageInfo: PageInfo!
}

type UserEdge { node: User! cursor: String! }

type User {
  id: ID!
  fullName: String!
  createdAt: DateTime!
  subscription: Subscription
  friends(first: Int): [User!]!
}

type Subscription {
  id: ID!
  status: Status!
  plan: Plan
}

enum Status { ACTIVE PAST_DUE }

type Plan {
  id: ID!
  name: String!
}
"""

CREATED = datetime(2026, 1, 31, 12, tzinfo=UTC)
KINDS = {kind.__name__: kind for kind in (Invalid, Unauthenticated, Forbidden, NotFound, Conflict, Unavailable)}


class User(msgspec.Struct):
    id: int
    full_name: str
    created_at: datetime = CREATED


class Subscription(msgspec.Struct):
    id: int
    status: str = "ACTIVE"


class Page(msgspec.Struct):
    items: list[User]
    cursors: list[str]
    has_next: bool


class Context(msgspec.Struct):
    """Counts calls of resolvers; `wait_s` makes batch resolvers wait."""

    calls: list[tuple[str, int]] = []
    items: list[str] = []
    request_id: str | None = "req-1"
    wait_s: float | None = None

    async def called(self, name: str, parents: int) -> None:
        self.calls.append((name, parents))
        if self.wait_s is not None:
            await asyncio.sleep(self.wait_s)


def make_resolvers() -> Resolvers:
    resolvers = Resolvers()

    @resolvers.query("hello")
    async def hello(ctx: Context, name: str | None = None) -> str:
        return f"Hello {name}"

    @resolvers.query("users")
    async def users(ctx: Context, first: int | None = None, after: str | None = None) -> Connection[User]:
        start = int(after) if after else 0
        numbers = range(start, start + page_size(first))
        return Connection(Page([User(n, f"User {n}") for n in numbers], [str(n + 1) for n in numbers], True))

    @resolvers.query("allUsers")
    async def all_users(ctx: Context) -> list[User]:
        return [User(n, f"User {n}") for n in range(50)]

    @resolvers.query("user")
    async def user(ctx: Context, id: str) -> User:  # noqa: A002  # the argument's own name
        raise NotFound(f"There is no user {id}.")

    @resolvers.query("fail")
    async def fail(ctx: Context, kind: str) -> str:
        if kind == "LimitExceeded":
            raise LimitExceeded("Used up.", retry_after_s=1.5)
        if kind in KINDS:
            raise KINDS[kind]("Told on purpose.", fields={"name": "is wrong"})
        raise RuntimeError("the password is hunter2")

    @resolvers.query("echo")
    async def echo(ctx: Context, value: Any = "nothing") -> Any:
        return value

    @resolvers.mutation("append")
    async def append(ctx: Context, item: str) -> list[str]:
        seen = list(ctx.items)
        await asyncio.sleep(0)
        ctx.items[:] = [*seen, item]
        return list(ctx.items)

    @resolvers.field("User", "subscription")
    async def subscriptions(ctx: Context, parents: list[User]) -> list[Subscription]:
        await ctx.called("User.subscription", len(parents))
        return [Subscription(parent.id) for parent in parents]

    @resolvers.field("User", "friends")
    async def friends(ctx: Context, parents: list[User], first: int | None = None) -> list[list[User]]:
        await ctx.called("User.friends", len(parents))
        return [[User(parent.id * 100 + n, "Friend") for n in range(first or 2)] for parent in parents]

    @resolvers.field("Subscription", "plan")
    async def plans(ctx: Context, parents: list[Subscription]) -> list[Any]:
        await ctx.called("Subscription.plan", len(parents))
        return [{"id": parent.id, "name": "Pro"} for parent in parents]

    return resolvers


def make_engine(*, introspection: bool = True, **limits: int) -> Engine:
    return Engine(build([SDL], [make_resolvers()]), limits=Limits(**limits), introspection=introspection)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged. Printing the tracebacks of the bugs provoked here would take longer than the tests."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture(scope="session")
def engine() -> Engine:
    return make_engine()


@pytest.fixture
def ctx() -> Context:
    return Context()


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The parts above, for tests that combine them otherwise."""
    return SimpleNamespace(
        SDL=SDL, Context=Context, User=User, Page=Page, make_engine=make_engine, make_resolvers=make_resolvers
    )


Serve = Callable[..., httpx.AsyncClient]


@pytest.fixture(scope="session")
async def serve(engine: Engine) -> AsyncIterator[Serve]:
    """`serve(…)` gives a client to an app in this process:
    `context_factory` and the app's settings may be said."""
    clients: list[httpx.AsyncClient] = []

    async def make_context(scope: Any) -> Context:
        return Context()

    def start(
        context_factory: Callable[[Any], Awaitable[Any]] = make_context, engine: Engine = engine, **settings: Any
    ) -> httpx.AsyncClient:
        app = GraphQLApp(engine, context_factory, **settings)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://graphql.test")
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.aclose()


@pytest.fixture(scope="module")
def server_url(engine: Engine) -> Iterator[str]:
    """A real uvicorn on a free loopback port."""

    async def make_context(scope: Any) -> Context:
        return Context()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app: Any = GraphQLApp(engine, make_context, body_limit=1_000_000)
        config = uvicorn.Config(app, interface="asgi3", lifespan="off", ws="none", log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)
