"""Operations end in time, and slow ones are logged with what they did."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from ximler.graphql.engine import Engine, GraphQLApp, Limits, Resolvers, build

SDL = "extend type Query { box: Box wait: Int } type Box { size: Int stuck: Int } extend type Mutation { stick: Int }"


def make(**limits: float) -> tuple[Engine, list[str]]:
    ended: list[str] = []
    resolvers = Resolvers()

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return SimpleNamespace()

    @resolvers.query("wait")
    async def wait(ctx: Any) -> int:
        await asyncio.sleep(0.02)
        return 1

    @resolvers.field("Box", "size")
    async def size(ctx: Any, parents: list[Any]) -> list[int]:
        return [1] * len(parents)

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("stuck")

    @resolvers.field("Box", "stuck")
    async def stuck_(ctx: Any, parents: list[Any]) -> list[int]:
        await stuck()
        return []

    @resolvers.mutation("stick")
    async def stick(ctx: Any) -> None:
        await stuck()

    return Engine(build([SDL], [resolvers]), limits=Limits(**limits)), ended  # type: ignore[arg-type]  # seconds


@pytest.mark.parametrize("query", ["{ box { stuck } }", "{ box { stuck size } wait }", "mutation { stick }"])
async def test_an_operation_past_its_time_is_ended_with_its_resolvers(query: str) -> None:
    engine, ended = make(seconds=0.05)
    response = await asyncio.wait_for(engine.execute(query, None), 5)
    assert response["data"] is None
    assert [error["extensions"]["code"] for error in response["errors"]] == ["QUERY_TIMEOUT"]
    assert ended == ["stuck"]


async def test_a_slow_operation_is_logged_with_its_calls() -> None:
    engine, _ = make(slow_seconds=0.01)
    with capture_logs() as logs:
        await engine.execute("query Q { box { size } wait }", None)
        await engine.execute("query Fast { box { size } }", None)
    [entry] = [entry for entry in logs if entry.get("operation") == "Q"]
    assert entry["event"] == "slow operation"
    assert entry["seconds"] >= 0.01
    calls = {call.split(":")[0] for call in entry["calls"]}  # siblings are in the order in which they end
    assert calls == {"Query.box × 1", "Box.size × 1", "Query.wait × 1"}
    assert entry["roundTrips"] == []
    assert len(entry["query"]) == 16


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_trace_requires_permission_and_a_request(allowed: bool) -> None:
    engine, _ = make()

    async def context(scope: Any) -> None:
        return None

    app = GraphQLApp(engine, context, may_trace=lambda ctx: allowed)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://graphql.test") as client:
        for asked in (True, False):
            body = {"query": "{ box { size } }", "extensions": {"trace": asked}}
            answer = (await client.post("/", json=body)).json()
            assert answer["data"] == {"box": {"size": 1}}
            assert ("extensions" in answer) is (asked and allowed)
            if asked and allowed:
                assert len(answer["extensions"]["trace"]["calls"]) == 2
