"""Mutated requests to every route: never an internal error, and nothing is done by halves.

Each run has a seed of its own, which a failure names; `SEED=… pytest` repeats it.
"""

import os
import random
import secrets
import time

import httpx
import pytest
from tests.attacks.surface import BODIES, HEADERS, Route, routes_of, values
from tests.serving import PASSWORD, Client

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering import corrections
from ximler.metering.ledger import settlement

_BAD = [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\0", b"%00", b"%ff", b"\xef\xbb\xbf", b"\\ud800", b"\r\n"]
_BAD += [b"\xe2\x80\xae", b"$where", b"../", b"-1", b"1e999", b"9" * 40, b"null", b"[[", b'"', b"{", b"]", b"\x1b[2J"]
_TEXT = [
    "",
    " ",
    "null",
    "*",
    '"',
    "-1",
    "9" * 30,
    "é",
    "\xff\xfe",
    "a" * 9_000,
    "a,b;c=d",
    "W/",
    "bytes=9-1",
    "=?utf-8?",
]
_KINDS = ["application/json", "application/json-patch+json", "application/x-ndjson", "text/plain", "image/png", "",
          "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/json; charset=utf-16",
          "application/offset+octet-stream", "application/vnd.ximler.records+json", "a/b; charset=\xff"]  # fmt: skip
_NAMES = [name for name, _ in HEADERS.values()]
_NAMES += ["Host", "Origin", "Sec-Fetch-Site", "If-Range", "Tus-Resumable", "Upload-Length", "Upload-Offset",
           "Content-Encoding", "Transfer-Encoding", "X-Request-Id", "User-Agent", "Accept-Language", "Expect"]  # fmt: skip
_JSON = [
    b'{"email":"ada@example.com","password":"correct horse battery"}',
    b'{"query":"{ me { id email } plans { id } }","variables":{"a":[1]},"operationName":null}',
    b'{"query":"mutation($i:CreateProjectInput!){createProject(input:$i){id}}","variables":{"i":{"name":"n"}}}',
    b'[{"op":"add","path":"/a","value":{"b":[1,2]}},{"op":"move","from":"/a","path":"/c"}]',
    b'{"client":"c1","seq":1,"put":{"shapes":{"s1":{"x":1}}},"set":{},"remove":{}}',
    b'{"shapes":[{"id":"a","x":1.5}],"title":"\\u00e9"}',
    b'{"name":"v1","pinned":true,"description":null}',
    b'{"id":"1","at":"2026-01-01T00:00:00Z","amount":1}\n{"id":"2","at":"2026-01-01T00:00:00Z"}\n',
    b"token=abc&password=correct+horse+battery&email=ada%40example.com&card=4242424242424242",
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n\x89PNG\r\n\x1a\n\r\n--b--\r\n',
]


def mutated(chance: random.Random, body: bytes) -> bytes:
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(body) + 1)
        end = min(len(body), at + chance.randrange(1, 9))
        body = chance.choice([
            body[:at] + chance.choice(_BAD) + body[at:],
            body[:at] + body[end:],
            body[:at],
            body[:at] + body[at:end] * 50 + body[end:],
            body[:at] + bytes([chance.randrange(256)]) + body[end:],
        ])  # fmt: skip
    return body


def headers_of(chance: random.Random) -> list[tuple[bytes, bytes]]:
    found = [("Content-Type", chance.choice(_KINDS).encode("latin-1"))] if chance.random() < 0.9 else []
    for _ in range(chance.randrange(4)):
        value = chance.choice(_TEXT).encode("latin-1")
        if chance.random() < 0.3:
            value = chance.choice([each for _, each in HEADERS.values()])[: chance.choice([20, 400])]
        found.append((chance.choice(_NAMES), value))
    return [(name.encode(), value.strip()) for name, value in found]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.soak)])
async def test_no_mutated_request_is_an_internal_error(ada: Client, database: Database, seconds: int) -> None:
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    chance = random.Random(seed)
    project = (await ada.create())["createProject"]["id"]
    paths = values(project=project)
    routes = [route for route in routes_of(ada) if not route.path.endswith("/canvas/changes")]  # endless
    routes += [Route("POST", "/graphql", False), Route("GET", "/graphql", False)] * 3
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        route = chance.choice(routes)
        path = route.fill(paths)
        if chance.random() < 0.2:
            path = mutated(chance, path.encode()).decode("latin-1").replace("\r", "").replace("\n", "")
        if chance.random() < 0.3:
            path += "?" + mutated(chance, b"token=a&since=1&name=x&query={plans{id}}&first=1").decode("latin-1")
        body = mutated(chance, chance.choice(_JSON)) if chance.random() < 0.98 else chance.choice([*BODIES.values()])[1]
        headers = headers_of(chance)
        if ada.token and chance.random() < 0.7:
            headers.append((b"authorization", f"Bearer {ada.token}".encode()))
        answer = await _send(ada, route.method, path, headers, body)
        count += 1
        if answer is None:
            continue
        what = f"SEED={seed}, request {count}: {route.method} {path[:200]!a} {headers} {body[:300]!r}"
        assert answer.status_code < 500, (what, answer.text[:500])
        if answer.status_code == 401 and not (await ada.ask("{ me { id } }")).data:
            await ada.sign_in("ada@example.com", PASSWORD)  # a mutated request ended the session
            await database.raw["throttles"].delete_many({})
    assert count > seconds
    # No operation was left half done: the counters match the stored documents.
    assert await database.raw["projects"].count_documents({"_id": {"$exists": True}, "name": None}) == 0
    await settlement.settle(database)
    operator = Actor(kind="operator", via="cli")
    assert [found async for found in corrections.rebuild_all(database, operator, dry_run=True) if found] == []


async def _send(
    client: Client, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> httpx.Response | None:
    """None where the client library refuses to send it."""
    try:
        url = httpx.URL("http://ximler.test").copy_with(raw_path=path.encode("latin-1"))
        request = client.http.build_request(method, url, headers=headers, content=body)
    except (httpx.InvalidURL, ValueError, TypeError):
        return None
    return await client.http.send(request)
