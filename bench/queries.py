"""The part of topic `graphql` that asks over HTTP:
our own queries, and the same of Mercurius with JIT, on one mongod."""

import os
import re
from collections.abc import Mapping
from statistics import median
from typing import Any

import httpx
import msgspec
from bson import ObjectId

from bench.load import Burst, burst
from bench.peers.mercurius import mercurius
from bench.report import Figure, Table, ms
from bench.served import SECRET, served
from bench.setup import Setup
from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.metering.ledger.changes import settle
from ximler.projects import projects
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = ["run"]

OURS, THEIRS = "Ximler", "Mercurius"
PROJECTS, CONNECTIONS = 500, 32
QUERIES = {
    "me": """{ me { id name email emailVerified createdAt
      subscription { status startDate plan { id name price currency limits { projects storage apiCalls } } }
      usage { resource used limit remaining }
      projects(first: 20) { nodes { id name updatedAt } pageInfo { hasNextPage } } } }""",
    "projects": """{ projects(first: 50) {
      nodes { id name description storageSize createdAt updatedAt } pageInfo { hasNextPage endCursor } } }""",
    "plans": """{ plans { id name description price currency interval features
      limits { projects storage apiCalls } active } }""",
}
SHAPES = {
    "me": "me { … subscription { plan } usage projects(first: 20) }",
    "projects": "projects(first: 50) { nodes { 6 fields } pageInfo }",
    "plans": "plans { … limits }",
}
LEAST = {"me": 1.5, "projects": 2.0, "plans": 2.5}
REQUESTS = {"me": 600, "projects": 1000, "plans": 2000}


class _Target:
    """One server and how it is asked."""

    def __init__(self, port: int, pid: int, header: str) -> None:
        self.port, self.pid, self.header = port, pid, header

    def request(self, query: str) -> bytes:
        body = msgspec.json.encode({"query": query})
        head = (
            f"POST /graphql HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{self.header}\r\n"
        )
        return f"{head}\r\n".encode() + body

    async def answer(self, query: str) -> Any:
        name, value = self.header.split(": ", 1)
        async with httpx.AsyncClient(timeout=30) as client:
            answered = await client.post(
                f"http://127.0.0.1:{self.port}/graphql", json={"query": query}, headers={name: value}
            )
        said = answered.json()
        assert not said.get("errors"), said
        return said["data"]


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database:
        user, token = await _populate(database, setup)
        async with (
            mercurius(uri=setup.uri, database=database.name) as peer,
            served(setup, database) as (port, pid),
        ):
            ours = _Target(port, pid, f"authorization: Bearer {token}")
            if isinstance(peer, str):
                return [await _compare(setup, database, {OURS: ours}, missing=peer)]
            theirs = _Target(peer.port, peer.pid, f"x-user-id: {user}")
            return [await _compare(setup, database, {OURS: ours, THEIRS: theirs}, missing=None, peer=peer.name)]


async def _populate(database: Database, setup: Setup) -> tuple[ObjectId, str]:
    """A user on the plan without limits, their projects, and a session's token."""
    settings = Settings(mongodb_uri=setup.uri, database=database.name, secret_key=SECRET)
    user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
    now = database.clock.now()
    await database.subscriptions.insert(
        Subscription(user_id=user.id, plan_id="enterprise", status="ACTIVE", start_date=now, price=99)
    )
    actor = Actor(kind="user", via="session", user_id=user.id)
    for number in range(PROJECTS):
        await projects.create(
            database,
            actor,
            name=f"Project {number}",
            description=f"The project number {number}, with a line or two that says what it is for",
            canvas_data={"shapes": [{"id": n, "x": n * 3, "y": n * 7} for n in range(5)]},
        )
    await settle(database)
    keyring = Keyring(settings)
    token = (await sessions.start(database, keyring, settings, actor, user)).token
    keyring.close()
    return user.id, token


async def _compare(
    setup: Setup, database: Database, targets: Mapping[str, _Target], *, missing: str | None, peer: str = ""
) -> Table:
    runs: dict[tuple[str, str], list[Burst]] = {(query, name): [] for query in QUERIES for name in targets}
    cpu: dict[tuple[str, str], float] = dict.fromkeys(runs, 0.0)
    commands: dict[tuple[str, str], int] = {}
    ends: dict[str, bytes] = {}
    for query, text in QUERIES.items():
        said = {name: await target.answer(text) for name, target in targets.items()}
        ends[query] = msgspec.json.encode({"data": said[OURS]})[-4:]
        assert len(set(map(_comparable, said.values()))) == 1, said
        for name, target in targets.items():
            await burst(target.port, target.request(text), ends=ends[query], requests=300, connections=CONNECTIONS)
            commands[query, name] = await _commands(database, target, text)
    for number in range(setup.rounds(8)):
        for query, text in QUERIES.items():
            names = list(targets) if number % 2 else list(targets)[::-1]
            for name in names:
                target = targets[name]
                before = _cpu_seconds(target.pid)
                runs[query, name].append(
                    await burst(
                        target.port,
                        target.request(text),
                        ends=ends[query],
                        requests=REQUESTS[query],
                        connections=CONNECTIONS,
                    )
                )
                cpu[query, name] += _cpu_seconds(target.pid) - before
    figures = []
    for query in QUERIES:
        if len(targets) == 2:
            pairs = list(zip(runs[query, OURS], runs[query, THEIRS], strict=True))
            rate = median(a.per_second / b.per_second for a, b in pairs)
            figures.append(
                Figure(what=f"{SHAPES[query]}: requests a second, ours ÷ theirs", value=rate, least=LEAST[query])
            )
            p99 = median(a.p99 / b.p99 for a, b in pairs)
            figures.append(Figure(what=f"{SHAPES[query]}: p99, ours ÷ theirs", value=p99, most=1))
        figures.append(Figure(what=f"{SHAPES[query]}: our commands", value=commands[query, OURS], unit=""))
    notes = [
        f"{setup.rounds(8)} rounds in turn over {CONNECTIONS} connections, a user with {PROJECTS} projects on one mongod. Ours is "
        "`ximler up`, one process, with a session, limits, log and metrics; theirs one process that takes the caller from a "
        "header and has none of that.",
        f"Theirs: {peer}." if peer else f"The peer is left out: {missing}",
    ]
    return Table(
        title="graphql: over HTTP, from MongoDB",
        figures=figures,
        columns=("", "requests", "p99", "CPU a request", "commands"),
        rows=[
            (
                f"{query}, {name}",
                f"{median(run.per_second for run in found):,.0f}/s",
                ms(median(run.p99 for run in found)),
                f"{cpu[query, name] / len(found) / REQUESTS[query] * 1e6:,.0f} µs",
                str(commands[query, name]),
            )
            for (query, name), found in runs.items()
        ],
        notes=notes,
        samples={f"{query}, {name}": [run.seconds for run in found] for (query, name), found in runs.items()},
    )


def _comparable(answer: Any) -> bytes:
    """The answer but for cursors, which are each one's own."""
    said = re.sub(rb'"endCursor":"[^"]*"', b'"endCursor":""', msgspec.json.encode(answer))
    return msgspec.json.encode(msgspec.json.decode(said), order="sorted").replace(b".0,", b",").replace(b".0}", b"}")


async def _commands(database: Database, target: _Target, text: str) -> int:
    """How many commands one request sends, by the server's own account;
    the change feed's waiting is left out."""
    raw = database.raw
    await raw.command("profile", 0)
    await raw["system.profile"].drop()
    await raw.command("profile", 2)
    try:
        await target.answer(text)
    finally:
        await raw.command("profile", 0)
    return await raw["system.profile"].count_documents(
        {"op": {"$ne": "getmore"}, "ns": {"$not": {"$regex": "profile"}}}
    )


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 (as proc(5) has it)
        fields = re.sub(r"\(.*\)", "x", stat.read()).split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
