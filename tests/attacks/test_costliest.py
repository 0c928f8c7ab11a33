"""The costliest request of up to a megabyte for each route, found by search rather than from a table.

Hypothesis varies bodies, addresses and headers, and keeps to those that cost the event loop more processor
time. `EXAMPLES` is the number of requests for each route; `-s` shows the costliest ones.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings, target
from hypothesis import strategies as st
from tests.attacks.surface import BODIES, HEADERS, JSON, Route, routes_of, values
from tests.serving import Client, serve

from ximler.core.settings import Settings
from ximler.database import Database

_EXAMPLES = int(os.environ.get("EXAMPLES") or 60)
_LOOP_S = 0.1
_BODY = 1_000_000  # the most of a caller without an account
_HEAD = 60_000  # of the 64 kB that a head may have

# Parts to repeat, by the kind of content. `<` and `>` in a frame mark the place of the repeated part.
JSON_TOKENS = ["[", "]", "{", "}", ",", ":", '"', '"a"', '"a":', '"a":1,', "1", "1,", "-1.5e300,", '"",', "{},", "[],",
               "null,", "true,", "\\u00e9", "\\", " ", "é", "\ud7ff", '"k":{"k":', "9" * 50]  # fmt: skip
JSON_FRAMES = ["<>", '{"a":[<1]}', '{"name":"<"}', '{"email":"<","password":"x"}', '{"password":"<","email":"a@example.com"}',
               '{"put":{"s":{<}}}', '{"client":"c","seq":1,"put":{"shapes":{<}}}', '{"settings":{<}}', '[<{}]', '{"token":"<"}',
               '{"add":[<]}', '[{"op":"add","path":"<","value":1}]', '[{"op":"add","path":"/a","value":[<1]}]']  # fmt: skip
QUERY_TOKENS = ["{", "}", "a:", "me", " ", "me{id}", "{me", "a:plans{id}", "(first:1)", "...F", "...F ", "...on User{", "id ",
                "id", "__typename ", "@include(if:true)", "$a:Int", "[", "]", "1 ",
                '\\"', '\\"\\"\\"', "#", ",", "\\n", "$", "!",
                "projects{nodes{", "fragment F on User{id}", "é", "@a", "(a:", "-", "."]  # fmt: skip
QUERY_FRAMES = ['{"query":"<"}', '{"query":"{<}"}', '{"query":"query(<){me{id}}"}', '{"query":"{me{<}}"}',
                '{"query":"{me{...F}} fragment F on User{<}"}', '{"query":"{projects(search:\\"<\\"){nodes{id}}}"}',
                '{"query":"{me{id}} <"}', '{"operationName":"<","query":"{me{id}}"}', '{"query":"{me{id ...F}}<"}',
                '{"query":"mutation($d:JSON){createProject(input:{name:\\"x\\",canvasData:$d}){id}}","variables":{"d":[<1]}}',
                '{"query":"query($i:[String!]){projects(tags:$i){nodes{id}}}","variables":{"i":[<"a"]}}',
                '{"query":"{me{id}}","variables":{<}}', '{"query":"{me{id}}","extensions":{<}}',
                '{"query":"mutation{createProject(input:{name:\\"x\\",canvasData:[<]}){id}}"}',
                '{"query":"mutation{register(input:{name:\\"<\\",email:\\"a@b.de\\",password:\\"x\\"}){accepted}}"}',
                '{"query":"mutation{signIn(email:\\"<\\",password:\\"x\\"){token}}"}']  # fmt: skip
FORM_TOKENS = ["a=1&", "&", "=", "%41", "%", "+", "a", "é", "token=", ";"]
PARTS_TOKENS = [
    "--b\r\n",
    "--b",
    "\r\n",
    "--",
    "a: b\r\n",
    'Content-Disposition: form-data; name="a"\r\n\r\n',
    "x",
    ";",
    '"',
]
ADDRESS_TOKENS = [
    "a=1&",
    "&",
    "=",
    "%41",
    "a",
    "search=",
    "first=1&",
    "after=",
    ",",
    "since=1&",
    "tags=a&",
    "%2F",
    "[",
    "token=",
]
HEAD_TOKENS = [
    '"a", ',
    "W/",
    '"',
    ",",
    " ",
    ";",
    "q=0.1,",
    "a=b; ",
    "a",
    "1",
    "-",
    "0-1,",
    "/",
    "gzip,",
    "é",
    "\t",
    "=",
    "for=",
    ".",
]
KINDS = {
    JSON: (JSON_TOKENS, JSON_FRAMES),
    "application/json-patch+json": (JSON_TOKENS, JSON_FRAMES),
    "application/merge-patch+json": (JSON_TOKENS, JSON_FRAMES),
    "application/vnd.ximler.records+json": (JSON_TOKENS, JSON_FRAMES),
    "application/x-ndjson": ([*JSON_TOKENS, "\n", "{}\n", '{"id":"1"}\n'], ["<"]),
    "application/x-www-form-urlencoded": (FORM_TOKENS, ["<", "token=<", "email=<", "token=a&password=<"]),
    "multipart/form-data; boundary=b": (
        PARTS_TOKENS,
        ["<", '--b\r\nContent-Disposition: form-data; name="<"\r\n\r\nx'],
    ),
    "application/octet-stream": (["\0", "\x89PNG\r\n\x1a\n", "GIF89a", "<svg>", "PK\x03\x04", "a"], ["<"]),
    "image/png": (["\0", "\x89PNG\r\n\x1a\n", "GIF89a", "IDAT"], ["<", "\x89PNG\r\n\x1a\n<"]),
    "application/zip": (["PK\x03\x04", "PK\x01\x02", "PK\x05\x06", "\0"], ["<", "PK\x03\x04<"]),
}
NAMES = sorted(
    {name for name, _ in HEADERS.values()} | {"Origin", "If-Range", "Upload-Length", "User-Agent", "Accept-Language"}
)


class Attack(msgspec.Struct):
    kind: str
    body: bytes
    query: str
    header: tuple[str, str] | None


@st.composite
def repeated(draw: st.DrawFn, tokens: list[str], most: int) -> str:
    unit = "".join(draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=4)))
    size = min(most, 2 ** draw(st.integers(4, 20)))
    return unit * max(1, size // len(unit.encode()))


@st.composite
def attacks(draw: st.DrawFn, graphql: bool) -> Attack:
    kind = JSON if graphql and draw(st.integers(0, 9)) else draw(st.sampled_from(sorted(KINDS)))
    tokens, frames = (QUERY_TOKENS, QUERY_FRAMES) if graphql and kind == JSON else KINDS[kind]
    if draw(st.integers(0, 9)) == 0:
        kind, body = draw(st.sampled_from(sorted(BODIES.values())))
    else:
        before, _, after = draw(st.sampled_from(frames)).partition("<")
        part = draw(repeated(tokens, _BODY - 500))
        closing = draw(st.sampled_from(["", "]" * 1000, "}" * 1000]))
        body = (before + part + closing + after.removeprefix(">")).encode("utf-8", "replace")[:_BODY]
    query = draw(repeated(ADDRESS_TOKENS, _HEAD)) if draw(st.booleans()) else ""
    header = None
    if draw(st.booleans()):
        header = draw(st.sampled_from(NAMES)), draw(repeated(HEAD_TOKENS, _HEAD - len(query.encode())))
    return Attack(kind, body, query, header)


@pytest.fixture
async def ada(database: Database, mongodb_uri: str, tmp_path: Path) -> AsyncIterator[Client]:
    """With limits that do not end the search."""
    unlimited = Settings(
        secret_key="a secret key that is only for the tests",
        argon2_memory_kib=7168,
        argon2_time_cost=1,
        database=database.name,
        environment="development",
        worker=False,
        data_dir=tmp_path,
        session_rate=10**9,
        session_burst=10**9,
        session_daily=10**9,
        log_level="error",
    )
    async with serve(unlimited, mongodb_uri) as app:
        yield await Client(app).join("ada@example.com")


async def cost(client: Client, method: str, path: str, attack: Attack) -> tuple[float, int]:
    """Seconds of the loop's processor time, this client's included, and the status."""
    headers = {"Authorization": f"Bearer {client.token}", "If-Match": "*", "Content-Type": attack.kind}
    if attack.header is not None:
        headers |= {attack.header[0]: attack.header[1].strip()}
    try:
        url = httpx.URL("http://ximler.test").copy_with(raw_path=f"{path}?{attack.query}".encode())
        content = attack.body if method not in ("GET", "HEAD", "DELETE") else None
        sent = {name: value.encode() for name, value in headers.items()}
        request = client.http.build_request(method, url, headers=sent, content=content)
    except (httpx.InvalidURL, ValueError):
        return 0, 0
    began = time.thread_time()
    answer = await client.http.send(request)
    return time.thread_time() - began, answer.status_code


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the application does, in its own thread
async def test_no_request_that_is_found_costs_the_loop_a_tenth_of_a_second(ada: Client, database: Database) -> None:
    routes = [route for route in routes_of(ada) if not route.path.endswith("/canvas/changes")]  # endless
    routes += [Route("POST", "/graphql", False), Route("GET", "/graphql", False)]
    costliest: list[tuple[float, str, str]] = []
    wrong: list[tuple[str, str]] = []
    for route in routes:
        await database.raw["projects"].delete_many({})
        await database.raw["gauges"].delete_many({})
        await database.raw["throttles"].delete_many({})
        await ada.sign_in("ada@example.com")
        made = await ada.create("p", canvasData={"a": {"b": [1, 2]}})
        path = route.fill(values(project=made["createProject"]["id"]))
        seconds, attack = await explore(ada, route, path, wrong)
        costliest.append((seconds, str(route), attack))
    for seconds, which, what in sorted(costliest, reverse=True):
        print(f"{seconds * 1000:6.1f} ms  {which}  {what}")
    assert wrong == []
    assert [each for each in costliest if each[0] > _LOOP_S] == []


async def explore(client: Client, route: Route, path: str, wrong: list[tuple[str, str]]) -> tuple[float, str]:
    """The costliest request that is found for a route."""
    loop = asyncio.get_running_loop()
    found = [(0.0, "")]

    async def least(attack: Attack) -> float:
        seconds = 1e9
        for _ in range(3):
            taken, status = await cost(client, route.method, path, attack)
            if status >= 500:
                wrong.append((str(route), shown(attack)))
            seconds = min(seconds, taken)
            if seconds < _LOOP_S / 2:
                break
        return seconds

    @settings(
        max_examples=_EXAMPLES * (5 if route.path == "/graphql" else 1),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.target],
        suppress_health_check=list(HealthCheck),
    )
    @given(attacks(route.path == "/graphql"))
    def search(attack: Attack) -> None:
        seconds = asyncio.run_coroutine_threadsafe(least(attack), loop).result()
        target(seconds)
        found[0] = max(found[0], (seconds, shown(attack)))

    await asyncio.to_thread(search)
    return found[0]


def shown(attack: Attack) -> str:
    header = attack.header and (attack.header[0], attack.header[1][:40], len(attack.header[1]))
    return (
        f"{attack.kind} {len(attack.body):,} B {attack.body[:60]!r}…{attack.body[-20:]!r} ?{attack.query[:30]} {header}"
    )
