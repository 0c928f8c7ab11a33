"""Topic `canvas`: one shape of a large canvas is moved, and twenty editors move theirs at once."""

import asyncio
import itertools
import json
import subprocess
import sys
from functools import partial
from statistics import median
from typing import Any

import bson
import msgspec
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from bench.contest import Contestant, compete, percentile, ratio, timed
from bench.editing import EDITORS
from bench.peers.mongoose import mongoose
from bench.report import Figure, Table, ms
from bench.served import SECRET, served
from bench.setup import Setup
from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database, wire
from ximler.database.monitoring import ConnectionState
from ximler.projects import access, projects
from ximler.projects.patches import Saver
from ximler.schema.project_share import PROJECT_SHARES, ProjectShare
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = ["run"]

OURS, MONGOOSE = "Ximler: a record patch", "Mongoose: load, change, save()"
_SIZES = {1_000_000: 2_300, 20_000_000: 46_800}  # bytes → shapes: the larger one has a base


class _Sent(CommandListener):
    """The bytes of each command, as the driver encodes it."""

    def __init__(self) -> None:
        self.commands: list[int] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.commands.append(len(bson.encode(event.command)))

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database, mongoose(setup.uri, database.name) as node:
        user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
        await database.subscriptions.insert(
            Subscription(
                user_id=user.id, plan_id="enterprise", status="ACTIVE", start_date=database.clock.now(), price=99
            )
        )
        ada = Actor(kind="user", user_id=user.id)
        seconds: dict[str, list[float]] = {}
        costs: dict[int, tuple[float, float, int]] = {}
        for size, count in _SIZES.items():
            await database.raw["projects"].delete_many({})
            made = await projects.create(
                database, ada, name="Sketch", canvas_data={"elements": [_shape(n) for n in range(count)]}
            )
            numbers = itertools.count(1)
            shape = _shape(count // 2)["id"]

            async def save(saver: Saver, project: Any = made.id, numbers: Any = numbers, shape: str = shape) -> float:
                return (await timed(lambda: saver.save(ada, project, _patch(shape, next(numbers)))))[0]

            saver = Saver(database)
            await save(saver)
            contestants = [Contestant(OURS, partial(save, saver))]
            if size == 1_000_000 and not isinstance(node, str):
                contestants.append(Contestant(MONGOOSE, partial(node.ask, "canvas", 1)))
            found = await compete(contestants, setup.rounds(40))
            seconds |= {f"{name}, {size // 1_000_000} MB": times for name, times in found.items()}
            sent = _Sent()
            async with AsyncMongoClient(setup.uri, **wire.options(), event_listeners=[sent]) as client:
                watched = Database(client, database.name, clock=database.clock, state=ConnectionState(quiet=True))
                counted = Saver(watched)
                await save(counted)
                sent.commands.clear()
                await save(counted)
                costs[size] = len(sent.commands), sent.commands[0], made.storage_size
        return [_table(seconds, costs, str(node)), await _together(setup, database, user)]


async def _together(setup: Setup, database: Database, user: User) -> Table:
    """Twenty users send ten patches a second each to a canvas of 500 KB, which one of them has shared."""
    await database.raw["projects"].delete_many({})
    ada = Actor(kind="user", user_id=user.id)
    made = await projects.create(
        database, ada, name="Sketch", canvas_data={"elements": [_shape(n) for n in range(1_170)]}
    )
    settings = Settings(mongodb_uri=setup.uri, database=database.name, secret_key=SECRET)
    keyring = Keyring(settings)
    users = [user]
    for number in range(1, EDITORS):
        email = f"editor{number}@example.com"
        member = await database.users.insert(User(name="Editor", email=email, password="-"))
        share = ProjectShare(
            id=access.key_of(made.id, email),
            user_id=user.id,
            project_id=made.id,
            email=email,
            role="EDITOR",
            member_id=member.id,
        )
        await database[PROJECT_SHARES].insert(share)
        users.append(member)
    tokens = [(await sessions.start(database, keyring, settings, Actor(), each)).token for each in users]
    keyring.close()
    async with served(setup, database, log_level="warning") as (port, _):
        command = [sys.executable, "-m", "bench.editing", str(port), str(made.id), str(setup.rounds(20))]
        done = await asyncio.to_thread(
            subprocess.run, command, input=json.dumps(tokens).encode(), stdout=subprocess.PIPE, check=True
        )
    found: dict[str, list[float]] = json.loads(done.stdout)
    p99 = {name: percentile(times, 99) for name, times in found.items()}
    return Table(
        title="canvas: twenty editors",
        figures=[
            Figure(what="p99 to the acknowledgement", value=1000 * p99["acknowledged"], unit="ms", most=150),
            Figure(what="p99 to every other editor", value=1000 * p99["arrived"], unit="ms", most=250),
        ],
        columns=("", "median", "p99"),
        rows=[(name, ms(median(times)), ms(p99[name])) for name, times in found.items()],
        notes=[
            f"{EDITORS} users, ten patches a second each on a canvas of {made.storage_size:,} bytes, over HTTP; all "
            "follow it by Server-Sent Events. Times count from the moment at which a patch was due.",
        ],
    )


def _shape(n: int) -> dict[str, Any]:
    return {
        "id": f"shape{n:06d}", "type": "rectangle", "x": n * 1.5, "y": n * 2.5, "width": 100.25, "height": 50.5,
        "angle": 0, "strokeColor": "#1e1e1e", "backgroundColor": "transparent", "fillStyle": "solid", "strokeWidth": 2,
        "strokeStyle": "solid", "roughness": 1, "opacity": 100, "groupIds": [], "frameId": None, "index": f"a{n}",
        "roundness": {"type": 3}, "seed": n * 7, "version": 17, "versionNonce": n * 31, "isDeleted": False,
        "boundElements": [], "updated": 1700000000000, "link": None, "locked": False,
    }  # fmt: skip


def _patch(shape: str, seq: int) -> dict[str, Any]:
    """Text is typed: three properties, 200 bytes of JSON. Each byte costs a second one in the log, and each
    property about 22 bytes for its path."""
    text = "A label of ninety-three letters and spaces is typed into a shape, while the others watch it ..."[:93]
    properties = {"text": text, "version": 100 + seq, "versionNonce": 123_456_789}
    return {"client": "0123456789ab", "seq": seq, "set": {shape: properties}}


def _table(seconds: dict[str, list[float]], costs: dict[int, tuple[float, float, int]], node: str) -> Table:
    ours, theirs = f"{OURS}, 1 MB", f"{MONGOOSE}, 1 MB"
    figures = [
        Figure(what="record patch: commands", value=max(cost[0] for cost in costs.values()), unit="", most=1),
        Figure(
            what="record patch: bytes to the server", value=max(cost[1] for cost in costs.values()), unit="", most=1024
        ),
    ]
    if theirs in seconds:
        faster = 1 / ratio(seconds[ours], seconds[theirs])
        figures.append(Figure(what="record patch on 1 MB: faster than Mongoose", value=faster, least=10))
    return Table(
        title="canvas: a shape is moved",
        figures=figures,
        columns=("", "median"),
        rows=[(name, ms(median(times))) for name, times in seconds.items()],
        notes=[
            f"A patch of {len(msgspec.json.encode(_patch('shape000000', 10)))} bytes on canvases of "
            + " and ".join(f"{cost[2]:,} bytes: {cost[1]:,} bytes to the server" for cost in costs.values())
            + f". Without HTTP on both sides. {node}.",
        ],
        samples=seconds,
    )
