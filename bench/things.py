"""Fifty objects in memory behind the engine:
in process, and over HTTP as `python -m bench.things`, which prints its port."""

import asyncio
import socket
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import msgspec
import uvicorn

from ximler.cli.protocol import Protocol
from ximler.cli.serving import runner, tune_collector
from ximler.graphql.engine import Engine, GraphQLApp, Resolvers, build

__all__ = ["BY_ID", "ROOTS", "THINGS", "TYPES", "Thing", "application"]

FIELDS = """
  id: ID!
  name: String!
  description: String
  kind: Kind!
  size: Int!
  price: Float!
  active: Boolean!
  owner: ID!
  note: String
"""
ROOTS = "thing(id: ID!): Thing things: [Thing!]!"
TYPES = f"type Thing {{ {FIELDS} }} enum Kind {{ ROUND SQUARE }}"


class Thing(msgspec.Struct):
    id: str
    name: str
    description: str | None
    kind: Literal["ROUND", "SQUARE"]
    size: int
    price: float
    active: bool
    owner: str
    note: str | None = None


THINGS = [
    Thing(
        f"{n:024x}",
        f"Thing {n}",
        f"The thing number {n}",
        "ROUND" if n % 2 else "SQUARE",
        n,
        n * 1.25,
        n % 3 > 0,
        f"{n % 7:024x}",
    )
    for n in range(50)
]
BY_ID = {thing.id: thing for thing in THINGS}

resolvers = Resolvers()


@resolvers.query("thing")
async def _thing(ctx: object, id: str) -> Thing | None:  # noqa: A002 (GraphQL's customary name)
    return BY_ID.get(id)


@resolvers.query("things")
async def _things(ctx: object) -> list[Thing]:
    return THINGS


def application() -> GraphQLApp:
    async def context(scope: MutableMapping[str, Any]) -> None:
        return None

    return GraphQLApp(Engine(build([f"extend type Query {{ {ROOTS} }} {TYPES}"], [resolvers])), context)


def main() -> None:
    """Serve until the parent closes standard input."""

    async def serve() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            application(),
            interface="asgi3",
            http=Protocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        server = uvicorn.Server(config)
        tune_collector()
        serving = asyncio.create_task(server.serve([listener]))
        print(listener.getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await serving

    with runner() as loop:
        loop.run(serve())


if __name__ == "__main__":
    main()
