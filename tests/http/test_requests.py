"""What happens to every request: an id, an address, a log line, a metric, safe headers."""

import asyncio
import re
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from tests.serving import PASSWORD, Client, serve

from ximler.core.settings import Settings, SettingsError
from ximler.database import Database
from ximler.http.requests import Requests, TrustedProxies

GENERATED = re.compile(r"[0-9a-f]{16}")


@pytest.mark.parametrize("given", ["abcdefgh", "A-Z_0.9~x", "x" * 64, "6f1c2a4e-9d3b-4e0f-8a57-2f9f0c1f7b1e"])
async def test_a_client_s_request_id_is_logged_apart_from_ours(client: Client, given: str) -> None:
    """A client that chose the id of another request could put its own lines among those of the other."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        response = await client.http.get("/nothing", headers={"X-Request-Id": given})
    (line,) = (entry for entry in logs if entry["event"] == "request")
    (ours,) = response.headers.get_list("x-request-id")
    assert GENERATED.fullmatch(ours)
    assert (line["request_id"], line["client_request_id"]) == (ours, given)
    assert line["address"] == "192.0.2.1"


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"short",
        b"x" * 65,
        b"has space",
        b"a\tb12345",
        b"<script>",
        b"id\r\nSet-Cookie: a=b",
        b"\xff" * 10,
        b"x" * 100_000,
    ],
)
async def test_any_other_request_id_is_replaced(client: Client, given: bytes) -> None:
    response = await client.http.get("/healthz", headers=[(b"X-Request-Id", given)])
    (answered,) = response.headers.get_list("x-request-id")
    assert GENERATED.fullmatch(answered)
    assert "set-cookie" not in response.headers


async def test_each_request_has_its_own_id(client: Client) -> None:
    ids = {(await client.http.get("/healthz")).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


PATHS = ["/", "/healthz", "/readyz", "/metrics", "/docs", "/docs/openapi.json", "/docs/assets/swagger-ui.css", "/nothing",
         "/confirm?token=x", "/graphql?query={plans{id}}", "/graphql"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_the_headers_that_keep_browsers_careful(client: Client, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        headers = (await client.http.request(method, path)).headers
        assert headers.get_list("x-content-type-options") == ["nosniff"]
        assert headers.get_list("x-frame-options") == ["DENY"]
        assert headers.get_list("referrer-policy") in (["same-origin"], ["no-referrer"])
        (policy,) = headers.get_list("content-security-policy")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers.get_list("cross-origin-opener-policy") == ["same-origin"]
        assert headers.get_list("cross-origin-resource-policy") == ["same-origin"]
        assert "camera=()" in headers["permissions-policy"]
        assert "strict-transport-security" not in headers  # served without TLS
        assert "server" not in headers
        assert "x-powered-by" not in headers


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    """Which every server has to understand (RFC 9110, 9.1)."""
    got, head = await client.http.get(path), await client.http.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    if path not in ("/metrics", "/nothing"):  # those say something new every time
        assert head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize(
    ("networks", "peer", "forwarded", "expected"),
    [
        # By default no proxy is trusted.
        ([], "203.0.113.9", "", "203.0.113.9"),
        ([], "203.0.113.9", "10.0.0.1", "203.0.113.9"),
        ([], None, "10.0.0.1", None),
        # The header counts only from trusted proxies.
        (["10.0.0.0/8"], "10.0.0.1", "203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "192.0.2.1", "203.0.113.9", "192.0.2.1"),
        (["10.0.0.0/8"], "10.0.0.1", "", "10.0.0.1"),
        # The nearest untrusted address counts; elements before it are its own claims.
        (["10.0.0.0/8"], "10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (["10.0.0.0/8", "192.0.2.0/24"], "192.0.2.1", "203.0.113.9, 10.9.9.9", "203.0.113.9"),
        # IPv6, and IPv4 within it.
        (["2001:db8::/32"], "2001:db8::1", "2001:470::7", "2001:470::7"),
        (["::1"], "::1", "203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "1.1.1.1, ::ffff:10.0.0.2", "1.1.1.1"),
        # A malformed element ends the search at the last known address.
        (["10.0.0.0/8"], "10.0.0.1", "garbage", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "203.0.113.9, unknown", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "203.0.113.9,, 10.0.0.2", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "' OR 1=1 --, 203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "999.1.1.1", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "\0" * 100, "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "1.1.1.1," * 10_000 + "203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "testclient", "203.0.113.9", "testclient"),
        (["0.0.0.0/0"], "10.0.0.1", "1.1.1.1", "1.1.1.1"),
    ],
)  # fmt: skip
def test_the_callers_address_is_the_nearest_that_is_not_a_proxy_of_ours(
    networks: list[str], peer: str | None, forwarded: str, expected: str | None
) -> None:
    assert TrustedProxies(networks).client(peer, forwarded) == expected


@pytest.mark.parametrize("network", ["proxy.internal", "10.0.0.0/33", "", "10.0.0.1-10.0.0.9", "*"])
def test_a_malformed_network_is_rejected_by_the_settings_name(network: str) -> None:
    with pytest.raises(SettingsError, match="XIMLER_TRUSTED_PROXIES"):
        TrustedProxies([network])


@pytest.mark.slow
async def test_a_session_stores_the_trusted_client_address(
    settings: Settings, ada: Client, database: Database, mongodb_uri: str
) -> None:
    sign_in = {
        "query": f'mutation {{ signIn(email: "ada@example.com", password: "{PASSWORD}") {{ token }} }}',
    }
    headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9", "User-Agent": "B" * 1000}
    await ada.http.post("/graphql", json=sign_in, headers=headers)
    behind_proxy = msgspec.structs.replace(settings, database=database.name, trusted_proxies=("192.0.2.0/24",))
    async with serve(behind_proxy, mongodb_uri) as app:
        await Client(app).http.post("/graphql", json=sign_in, headers=headers)
    rows = await database.raw["sessions"].find({}).sort("createdAt", 1).to_list()
    assert [row["address"] for row in rows] == ["192.0.2.1", "192.0.2.1", "203.0.113.9"]
    assert rows[-1]["userAgent"] == "B" * 300


async def test_a_request_is_logged_once_with_its_key_facts(client: Client) -> None:
    with structlog.testing.capture_logs() as logs:
        response = await client.http.get("/nothing?token=secret", headers={"Authorization": "Bearer secret"})
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    assert (entry["method"], entry["path"], entry["status"], entry["log_level"]) == ("GET", "/nothing", 404, "info")
    assert entry["ms"] >= 0
    assert "secret" not in str(logs)
    assert response.headers["x-request-id"]
    with structlog.testing.capture_logs() as logs:
        await client.http.get("/healthz")
    assert [entry["log_level"] for entry in logs] == ["debug"]


async def counted(client: Client, **labels: str) -> float:
    text = (await client.http.get("/metrics")).text
    line = f"ximler_http_requests_total{{{','.join(f'{k}={v!r}' for k, v in labels.items())}}}".replace("'", '"')
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


@pytest.mark.slow
async def test_requests_are_counted_by_route_not_by_path(client: Client) -> None:
    before = await counted(client, method="GET", route="/healthz", status="200")
    await client.http.get("/healthz?x=1")
    assert await counted(client, method="GET", route="/healthz", status="200") == before + 1
    before = await counted(client, method="other", route="other", status="404")
    for n in range(3):
        await client.http.request(f"VERB{n}", f"/made/up/{n}")
    assert await counted(client, method="other", route="other", status="404") == before + 3
    text = (await client.http.get("/metrics")).text
    assert "VERB" not in text
    assert "/made/up" not in text


async def test_a_websocket_is_turned_away(app: Any) -> None:
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "websocket", "asgi": {"version": "3.0"}, "path": "/graphql", "raw_path": b"/graphql", "query_string": b"",
        "headers": [], "client": ("192.0.2.1", 1), "server": ("x", 80), "scheme": "ws", "subprotocols": [], "root_path": "",
        "state": {},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_any_user_agent_is_accepted(client: Client) -> None:
    response = await client.http.get(
        "/healthz", headers=[(b"user-agent", b"\xff\xfe\x01" * 1000), (b"cookie", b"\xff" * 9000)]
    )
    assert isinstance(response, httpx.Response)
    assert response.status_code == 200


async def test_a_path_cannot_inject_control_characters_into_the_log(client: Client) -> None:
    with structlog.testing.capture_logs() as logs:
        await client.http.get("/%1b[2J%0d%0aforged" + "x" * 1000)
    (entry,) = [entry for entry in logs if entry["event"] == "request"]
    assert entry["path"].startswith(r"/\x1b[2J\r\nforged")
    assert entry["path"].isprintable()
    assert len(entry["path"]) < 250


async def test_a_request_cancelled_by_shutdown_is_answered_503_and_logged_once() -> None:
    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"x")], "client": ("192.0.2.1", 1)}
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(Requests(hangs, TrustedProxies(()))(scope, None, send))  # type: ignore[arg-type]  # stubs
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 503)]
    headers = dict(sent[0]["headers"])
    assert (headers[b"content-type"], headers[b"retry-after"]) == (b"application/problem+json", b"1")
    assert (sent[0]["status"], msgspec.json.decode(sent[1]["body"])["code"]) == (503, "SHUTTING_DOWN")


async def test_the_log_names_caller_operation_and_error(client: Client) -> None:
    await client.join("ada@example.com")
    with structlog.testing.capture_logs() as logs:
        await client.ask("query Mine { me { email } projects(first: 1) { nodes { id } } }")
        await client.ask('mutation { deleteProject(id: "000000000000000000000000") { id } }')
        headers = {"Authorization": f"Bearer {client.token}"}
        await client.http.get("/v1/projects/000000000000000000000000/canvas", headers=headers)
    asked, failed, read = (line for line in logs if line["event"] == "request")
    assert (asked["operation"], "code" in asked, len(asked["user"])) == ("Mine", False, 24)
    assert (failed["operation"], failed["code"], failed["user"]) == ("deleteProject", "NOT_FOUND", asked["user"])
    assert (read["code"], read["user"]) == ("NOT_FOUND", asked["user"])


async def test_browsers_are_bound_to_https_where_it_is_served() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"x")], "http_version": "1.1"}
    await Requests(app, TrustedProxies(()), https=True)(scope, None, send)  # type: ignore[arg-type]  # stubs
    assert (b"strict-transport-security", b"max-age=31536000; includeSubDomains") in sent[0]["headers"]
