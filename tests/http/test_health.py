"""Is it alive, can it work, what is it doing?"""

import asyncio
import re

import msgspec
import pytest
from tests.serving import Client, serve

from ximler import __version__
from ximler.core.errors import Unavailable
from ximler.core.settings import Settings
from ximler.database import Database, connect

SAMPLE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]\w*="(\\.|[^"\\])*",?)*\})? \S+')


async def test_healthz_answers_without_the_database(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: Database) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(Database, "ping", away)
    response = await client.http.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "version": __version__})
    response = await client.http.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable", "database": "disconnected"})


async def test_readyz_says_that_the_database_answers(client: Client) -> None:
    response = await client.http.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "database": "connected"})


async def test_metrics_are_prometheus_text_and_cover_requests_commands_pool_and_topology(
    ada: Client, database: Database, mongodb_uri: str
) -> None:
    other = await connect(
        mongodb_uri, name=database.name
    )  # the server of the last that connected may have been stopped
    await other.close()
    await ada.create("counted")
    async with asyncio.timeout(10):  # the driver tells of servers once a second
        while 'type="RSPrimary"' not in (response := await ada.http.get("/metrics")).text:  # noqa: ASYNC110 (polls an endpoint)
            await asyncio.sleep(0.05)
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in response.text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not SAMPLE.fullmatch(line)] == []
    for expected in (
        'ximler_http_requests_total{method="POST",route="/graphql",status="200"}',
        'ximler_http_request_seconds_bucket{le="0.005",route="/graphql"}',
        'ximler_database_command_seconds_count{collection="projects",verb="insert"}',
        'ximler_database_command_seconds_count{collection="gauges",verb="update"}',
        'ximler_database_pool_connections{state="open"}',
        'ximler_database_pool_connections{state="checked_out"}',
        "ximler_database_pool_wait_seconds_count",
        "ximler_database_up 1.0",
        'ximler_database_servers{type="RSPrimary"} ',
    ):
        assert any(line.startswith(expected) for line in lines), expected


@pytest.mark.slow
async def test_metrics_take_their_token_where_there_is_one(
    settings: Settings, database: Database, mongodb_uri: str
) -> None:
    token = "a token for Prometheus"
    settings = msgspec.structs.replace(settings, database=database.name, metrics_token=token)
    async with serve(settings, mongodb_uri) as app:
        http = Client(app).http
        assert (await http.get("/metrics", headers={"Authorization": f"Bearer {token}"})).status_code == 200
        for wrong in ({}, {"Authorization": token[:-1]}, {"Authorization": f"Bearer {token}x"}, {"Authorization": "é"}):
            refused = await http.get(
                "/metrics", headers={name: value.encode("latin-1") for name, value in wrong.items()}
            )
            assert refused.status_code == 401
            assert "ximler_" not in refused.text.replace("ximler_metrics_token", "")


@pytest.mark.slow
async def test_metrics_contain_no_personal_data(ada: Client) -> None:
    await ada.create("Xanadu")
    text = (await ada.http.get("/metrics")).text
    assert ada.token is not None
    for secret in (ada.token, "ada@example.com", "Xanadu"):
        assert secret not in text


@pytest.mark.slow
async def test_metrics_and_introspection_are_closed_in_production_by_default(
    settings: Settings, database: Database, mongodb_uri: str
) -> None:
    """Both would show outsiders what differs between requests,
    and which operations there are for operators."""
    settings = msgspec.structs.replace(settings, database=database.name, environment="production")
    async with serve(settings, mongodb_uri) as app:
        client = Client(app)
        assert (await client.http.get("/metrics")).status_code == 401
        assert (await client.ask("{ __schema { types { name } } }")).code == "GRAPHQL_VALIDATION_FAILED"
