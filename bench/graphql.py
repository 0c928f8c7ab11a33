"""Topic `graphql`: the engine's own cost, beside plain graphql-core, on data in memory; the same over HTTP,
beside Mercurius with JIT; texts that are new; then whole queries (`bench.queries`).
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from typing import Any

import graphql
import msgspec

from bench import queries
from bench.client import post
from bench.contest import Contestant, compete, ratio
from bench.load import Burst, burst
from bench.peers.mercurius import mercurius
from bench.report import Figure, Table, ms, spread, us
from bench.setup import Setup
from bench.things import BY_ID, ROOTS, THINGS, TYPES, Thing, application
from ximler.app import schema
from ximler.graphql.engine import Engine
from ximler.graphql.engine.compiled import encode

__all__ = ["run"]

QUERIES = {
    "1 × 2": "query ($id: ID!) { thing(id: $id) { id name } }",
    "50 × 9": "{ things { id name description kind size price active owner note } }",
}
LEAST = {"50 × 9": 30.0}
OURS = "Ximler, through ASGI"
ALONE = "Ximler, the engine alone"
CACHED = "graphql-core, parsed and validated once"
PLAIN = "graphql-core, as it comes"


async def run(setup: Setup) -> list[Table]:
    inside = [await _compare(setup, shape, requests) for shape, requests in (("1 × 2", 300), ("50 × 9", 20))]
    return [*inside, await _cold(setup), await _over_http(setup), *await queries.run(setup)]


async def _compare(setup: Setup, shape: str, requests: int) -> Table:
    body = msgspec.json.encode({"query": QUERIES[shape], "variables": {"id": THINGS[7].id} if shape == "1 × 2" else {}})
    ours, alone, cached, plain = _ours(), _alone(), _core(cached=True), _core(cached=False)
    expected = msgspec.json.decode(await plain(body))
    assert expected.get("data")
    assert not expected.get("errors")
    for answer in (ours, alone, cached):
        assert msgspec.json.decode(await answer(body)) == expected
    contestants = [
        Contestant(name, partial(_repeat, answer, body, requests))
        for name, answer in ((OURS, ours), (ALONE, alone), (CACHED, cached), (PLAIN, plain))
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
                what=f"{shape} in process: the engine alone, beside graphql-core with its cache",
                value=ratio(samples[CACHED], samples[ALONE]),
                least=LEAST.get(shape),
            ),
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
            "Through ASGI is the whole callable: headers, limits and cost, batches, errors. The engine alone, and graphql-core's "
            "contestants, decode the body, execute and encode the answer, all by msgspec, and nothing else.",
        ],
        samples=samples,
    )


async def _cold(setup: Setup) -> Table:
    """From a text that the process has not seen to a plan that can run: on the real schema."""
    engine, taken = Engine(schema()), {query: list[float]() for query in queries.QUERIES}
    for number in range(setup.rounds(200)):
        for query, text in queries.QUERIES.items():
            fresh = f"query Q{number} {text}"
            began = time.process_time()
            engine.prepare(fresh)
            taken[query].append(time.process_time() - began)
    slowest = max(taken, key=lambda query: median(taken[query]))
    return Table(
        title="graphql: a new text",
        figures=[
            Figure(
                what=f"{slowest}, a text seen for the first time, until it can run",
                value=median(taken[slowest]) * 1000,
                unit="ms",
                most=4,
            )
        ],
        columns=("", "median", "spread"),
        rows=[(query, ms(median(found)), spread(found)) for query, found in taken.items()],
        notes=["Parsed, validated, limited, priced and planned on the schema of Ximler: processor time."],
        samples=taken,
    )


async def _over_http(setup: Setup) -> Table:
    """The list of 50 × 9 from memory: HTTP, the engine and JSON, without a database on either side."""
    body = msgspec.json.encode({"query": QUERIES["50 × 9"]})
    runs: dict[str, list[Burst]] = {"Ximler": [], "Mercurius": []}
    async with mercurius(things=msgspec.to_builtins(THINGS)) as peer, _things() as port:
        ports = {"Ximler": port} if isinstance(peer, str) else {"Ximler": port, "Mercurius": peer.port}
        for number in range(setup.rounds(8) + 1):
            for name in list(ports) if number % 2 else list(ports)[::-1]:
                head = (
                    f"POST /graphql HTTP/1.1\r\nhost: 127.0.0.1:{ports[name]}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\n\r\n"
                )
                run = await burst(ports[name], head.encode() + body, ends=b"]}}", requests=2000)
                if number:  # the first warms up
                    runs[name].append(run)
        note = f"The peer is left out: {peer}" if isinstance(peer, str) else f"Theirs: {peer.name}."
    pairs = list(zip(runs["Ximler"], runs["Mercurius"], strict=False))
    figures = [
        Figure(
            what="50 × 9 from memory over HTTP: requests a second, ours ÷ theirs",
            value=median(ours.per_second / theirs.per_second for ours, theirs in pairs),
            least=1.3,
        )
    ]
    return Table(
        title="graphql: over HTTP, from memory",
        figures=figures if pairs else [],
        columns=("", "requests", "p99"),
        rows=[
            (name, f"{median(run.per_second for run in found):,.0f}/s", ms(median(run.p99 for run in found)))
            for name, found in runs.items()
            if found
        ],
        notes=[f"32 connections. {note}"],
        samples={name: [run.seconds for run in found] for name, found in runs.items()},
    )


@asynccontextmanager
async def _things() -> AsyncIterator[int]:
    """The port of `bench.things`."""
    command = [sys.executable, "-m", "bench.things"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(await asyncio.to_thread(process.stdout.readline))


Answer = Callable[[bytes], Awaitable[bytes]]


async def _repeat(answer: Answer, body: bytes, requests: int) -> float:
    began = time.perf_counter()
    for _ in range(requests):
        await answer(body)
    return time.perf_counter() - began


def _ours() -> Answer:
    app = application()

    async def answer(body: bytes) -> bytes:
        status, answered = await post(app, body)
        assert status == 200, answered
        return answered

    return answer


def _alone() -> Answer:
    engine = application().engine

    async def answer(body: bytes) -> bytes:
        request = msgspec.json.decode(body)
        return encode(await engine.run(engine.prepare(request["query"], variables=request["variables"]), None))

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
