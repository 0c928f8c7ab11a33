"""Which pages of other origins may call the API from a browser: those on the list, and no other."""

from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from tests.serving import Client, serve

from ximler.core.settings import Settings
from ximler.database import Database

OURS = "https://app.example.com"
OTHERS = [
    "https://evil.example.com",
    "https://shop.example.com",
    "https://evil-shop.example.com",
    "https://app.example.com.evil.com",
    "https://app-example.com",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://APP.example.com.",
    "null",
    "*",
    "",
    "https://app.example.com, https://evil.example.com",
]
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture
async def listed(settings: Settings, database: Database, mongodb_uri: str) -> AsyncIterator[httpx.AsyncClient]:
    """An application that lists one origin, and a second."""
    settings = msgspec.structs.replace(
        settings, database=database.name, cors_origins=(OURS, "http://localhost:5173", "https://*.shop.example.com")
    )
    async with serve(settings, mongodb_uri) as app:
        yield Client(app).http


@pytest.mark.slow
@pytest.mark.parametrize("origin", [OURS, "http://localhost:5173", "https://a.b.shop.example.com"])
@pytest.mark.parametrize("path", ["/graphql", "/healthz", "/nothing"])
async def test_a_listed_origin_may_ask_and_read(listed: httpx.AsyncClient, origin: str, path: str) -> None:
    allowed = await listed.options(path, headers={"Origin": origin, **PREFLIGHT})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(allowed.headers["access-control-allow-headers"].lower().split(", "))
    assert "origin" in allowed.headers["vary"].lower()
    answer = await listed.get(path, headers={"Origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.slow
@pytest.mark.parametrize("origin", OTHERS)
async def test_another_origin_may_not(listed: httpx.AsyncClient, origin: str) -> None:
    refused = await listed.options("/graphql", headers={"Origin": origin, **PREFLIGHT})
    assert refused.status_code in (400, 405)
    assert "access-control-allow-origin" not in refused.headers
    answer = await listed.post("/graphql", headers={"Origin": origin}, json={"query": "{ plans { id } }"})
    assert answer.status_code == 200  # a browser keeps it from the page
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [{"Access-Control-Request-Method": "TRACE"}, {"Access-Control-Request-Headers": "x-anything"}],
)
async def test_a_listed_origin_is_limited_to_the_methods_and_headers_of_the_api(
    listed: httpx.AsyncClient, wrong: dict[str, str]
) -> None:
    refused = await listed.options("/graphql", headers={"Origin": OURS, **PREFLIGHT, **wrong})
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


async def test_without_a_list_there_is_no_permission_at_all(client: Client) -> None:
    for path in ("/graphql", "/healthz"):
        for method in ("OPTIONS", "GET", "POST"):
            response = await client.http.request(method, path, headers={"Origin": OURS, **PREFLIGHT})
            assert not [name for name in response.headers if name.startswith("access-control")]
