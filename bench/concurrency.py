"""Topic `concurrency`: 50 requests of one user at once, for the three projects of the free plan, and for as
many as they like.
"""

import asyncio
import time
from collections import Counter
from statistics import median
from typing import Any

import msgspec
from bson import ObjectId

from bench.client import Town, post, town
from bench.contest import percentile
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.database.monitoring import round_trips
from ximler.schema.gauge import GAUGES
from ximler.schema.subscription import Subscription

__all__ = ["run"]

AT_ONCE = 50
CREATE = 'mutation { createProject(input: {name: "Sketch", canvasData: {shapes: [1, 2, 3]}}) { id } }'
FREE, UNLIMITED = "free plan: 3 projects", "enterprise plan: unlimited"


class _Rush(msgspec.Struct):
    """The outcomes of 50 requests."""

    answers: Counter[str]
    kept: int  # projects in the database
    gauge: int  # projects that the user's gauge counts
    whole: float  # seconds until the last answer
    each: list[float]  # seconds of each request
    commands: int  # sent to the database for all of them


async def run(setup: Setup) -> list[Table]:
    rushes: dict[str, list[_Rush]] = {FREE: [], UNLIMITED: []}
    async with town(setup) as place:
        await _rush(place, FREE)  # opens the pool's connections
        for _ in range(setup.rounds(12)):
            for plan, seen in rushes.items():
                seen.append(await _rush(place, plan))
    return [_table(rushes)]


async def _rush(place: Town, plan: str) -> _Rush:
    client = await place.join()
    user_id = ObjectId((await client.ask("{ me { id } }"))["me"]["id"])
    if plan == UNLIMITED:
        await place.database.subscriptions.insert(
            Subscription(
                user_id=user_id,
                plan_id="enterprise",
                status="ACTIVE",
                start_date=place.database.clock.now(),
                price=99,
            )
        )
    body = msgspec.json.encode({"query": CREATE})

    async def one() -> tuple[str, float]:
        began = time.perf_counter()
        _, answer = await post(place.app, body, token=client.token)
        seconds = time.perf_counter() - began
        said: dict[str, Any] = msgspec.json.decode(answer)
        return said["errors"][0]["extensions"]["code"] if said.get("errors") else "created", seconds

    with round_trips() as trips:
        began = time.perf_counter()
        results = await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        whole = time.perf_counter() - began
        commands = len(trips)
    gauge = await place.database[GAUGES].get(user_id)
    return _Rush(
        answers=Counter(result for result, _ in results),
        kept=await place.database.projects.count({"userId": user_id}),
        gauge=gauge.projects,
        whole=whole,
        each=[seconds for _, seconds in results],
        commands=commands,
    )


def _table(rushes: dict[str, list[_Rush]]) -> Table:
    figures, rows = [], []
    for plan, seen in rushes.items():
        room = 3 if plan == FREE else AT_ONCE
        exact = {"created": room, "QUOTA_EXCEEDED": AT_ONCE - room}
        right = sum(rush.kept == rush.gauge == room and rush.answers == Counter(exact) for rush in seen)
        figures.append(
            Figure(
                what=f"{plan}: rounds with exactly {room} created, kept and counted",
                value=right,
                unit="",
                exactly=len(seen),
            )
        )
        each = [seconds for rush in seen for seconds in rush.each]
        said = sum((rush.answers for rush in seen), Counter[str]())
        rows.append(
            (
                plan,
                ms(median(each)),
                ms(percentile(each, 99)),
                ms(median(rush.whole for rush in seen)),
                f"{median(rush.commands for rush in seen) / AT_ONCE:.1f}",
                ", ".join(f"{count} {answer}" for answer, count in said.most_common()),
            )
        )
    return Table(
        title=f"concurrency: {AT_ONCE} createProject at once, by one user",
        figures=figures,
        columns=("", "p50", "p99", f"all {AT_ONCE}", "commands a request", "answers, all rounds"),
        rows=rows,
        notes=[
            f"{len(rushes[FREE])} rounds, a new user each. One process, pool of 10 connections. All {AT_ONCE} want to change the "
            "same gauge in their transaction: conflicts are repeated by the driver until each has its answer.",
        ],
        samples={plan: [seconds for rush in seen for seconds in rush.each] for plan, seen in rushes.items()},
    )
