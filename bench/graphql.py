"""Topic `graphql`: the engine's own cost, beside plain graphql-core, on data in memory; then whole queries (`bench.queries`)."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from statistics import median
from typing import Any, Literal

import graphql
import msgspec

from bench import queries
from bench.client import post
from bench.contest import Contestant, compete, ratio
from bench.report import Figure, Table, spread, us
from bench.setup import Setup
from ximler.graphql.engine import Engine, GraphQLApp, Resolvers, build

__all__ = ["run"]

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
QUERIES = {
    "1 × 2": "query ($id: ID!) { thing(id: $id) { id name } }",
    "50 × 9": "{ things { id name description kind size price active owner note } }",
}
OURS = "Ximler, through ASGI"
CACHED = "graphql-core, parsed and validated once"
PLAIN = "graphql-core, as it comes"


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


async def run(setup: Setup) -> list[Table]:
    inside = [await _compare(setup, shape, requests) for shape, requests in (("1 × 2", 300), ("50 × 9", 20))]
    return inside + await queries.run(setup)


async def _compare(setup: Setup, shape: str, requests: int) -> Table:
    body = msgspec.json.encode({"query": QUERIES[shape], "variables": {"id": THINGS[7].id} if shape == "1 × 2" else {}})
    ours, cached, plain = _ours(), _core(cached=True), _core(cached=False)
    expected = msgspec.json.decode(await plain(body))
    assert expected.get("data")
    assert not expected.get("errors")
    for answer in (ours, cached):
        assert msgspec.json.decode(await answer(body)) == expected
    contestants = [
        Contestant(name, partial(_repeat, answer, body, requests))
        for name, answer in ((OURS, ours), (CACHED, cached), (PLAIN, plain))
    ]
    samples = await compete(contestants, setup.rounds(20))
    rows = []
    for name, taken in samples.items():
        each = median(taken) / requests
        rows.append((name, f"{1 / each:,.0f}/s", us(each), spread(taken)))
    return Table(
        title=f"graphql: {shape} (objects × fields), in memory",
        figures=[
            Figure(
                what="requests a second, beside graphql-core with its cache",
                value=ratio(samples[CACHED], samples[OURS]),
            ),
            Figure(
                what="requests a second, beside graphql-core as it comes", value=ratio(samples[PLAIN], samples[OURS])
            ),
        ],
        columns=("", "requests", "a request", "spread"),
        rows=rows,
        notes=[
            f"{len(samples[OURS])} rounds of {requests} requests, one after the other, on one core.",
            "Ours is the whole ASGI callable: headers, limits and cost, batches, errors. graphql-core's contestants decode the "
            "body, execute and encode the answer, all by msgspec too, and nothing else.",
        ],
        samples=samples,
    )


Answer = Callable[[bytes], Awaitable[bytes]]


async def _repeat(answer: Answer, body: bytes, requests: int) -> float:
    began = time.perf_counter()
    for _ in range(requests):
        await answer(body)
    return time.perf_counter() - began


def _ours() -> Answer:
    async def context(scope: MutableMapping[str, Any]) -> None:
        return None

    app = GraphQLApp(Engine(build([f"extend type Query {{ {ROOTS} }} {TYPES}"], [resolvers])), context)

    async def answer(body: bytes) -> bytes:
        status, answered = await post(app, body)
        assert status == 200, answered
        return answered

    return answer


def _core(*, cached: bool) -> Answer:
    """Resolvers as its documentation writes them; leaves by its default resolver, which reads attributes."""
    schema = graphql.build_schema(f"type Query {{ {ROOTS} }} {TYPES}")
    assert schema.query_type

    async def thing(_root: object, _info: graphql.GraphQLResolveInfo[Any], id: str) -> Thing | None:  # noqa: A002 (as above)
        return BY_ID.get(id)

    async def things(_root: object, _info: graphql.GraphQLResolveInfo[Any]) -> list[Thing]:
        return THINGS

    schema.query_type.fields["thing"].resolve = thing
    schema.query_type.fields["things"].resolve = things
    documents: dict[str, graphql.DocumentNode] = {}

    async def answer(body: bytes) -> bytes:
        request = msgspec.json.decode(body)
        document = documents.get(request["query"])
        if document is None:
            document = graphql.parse(request["query"])
            assert not graphql.validate(schema, document)
            if cached:
                documents[request["query"]] = document
        result = graphql.execute(schema, document, variable_values=request["variables"])
        if not isinstance(result, graphql.ExecutionResult):
            result = await result
        return msgspec.json.encode(result.formatted)

    return answer
