"""Attacks on every REST route, also on the next ones: they are taken from the application."""

import itertools
import secrets
import time
from typing import Any

import pytest
from tests.attacks.surface import BODIES, HEADERS, OBJECTS, PUBLIC, Route, routes_of, values
from tests.contents import contents
from tests.graphql.fields import MARK
from tests.graphql.test_access import Victim, of, victim  # noqa: F401 (a fixture)
from tests.serving import Client

from ximler.database import Database

pytestmark = pytest.mark.slow

_LOOP_S = 0.1
_ADDRESSES = (f"198.51.{high}.{low}" for high, low in itertools.product(range(100, 200), range(256)))
# Enough that some of it is well-formed for each route.
_TRIES: list[tuple[dict[str, str], bytes]] = [
    ({"Content-Type": "application/json"}, b"{}"),
    ({"Content-Type": "application/json", "If-Match": '"0"'}, b'{"taken": true}'),
    ({"Content-Type": "application/json"}, b'{"email": "taken@example.com", "role": "EDITOR"}'),
    ({"Content-Type": "application/json"}, b'{"email": "taken@example.com"}'),
    ({"Content-Type": "application/json-patch+json", "If-Match": '"0"'}, b'[{"op":"add","path":"/taken","value":1}]'),
    ({"Content-Type": "application/octet-stream", "If-Match": "*"}, b"x"),
    ({"Tus-Resumable": "1.0.0", "Upload-Length": "1", "Upload-Metadata": "filename eA=="}, b""),
    (
        {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
        b"x",
    ),
]


async def test_every_parameter_of_a_path_has_an_entry(client: Client) -> None:
    parameters = {name for route in routes_of(client) for name in route.parameters}
    assert parameters - OBJECTS - PUBLIC.keys() == set()


async def test_no_route_reads_or_changes_what_is_anothers(
    victim: Victim,  # noqa: F811
    ada: Client,
    database: Database,
) -> None:
    headers = {"Authorization": f"Bearer {victim.client.token}"}
    begun = await ada.http.post(
        f"/v1/projects/{victim.project}/uploads",
        headers={**headers, "Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": "filename eA=="},
    )
    assert begun.status_code == 201
    theirs = values(
        project=victim.project,
        asset=victim.asset,
        version=victim.version,
        invoice=victim.invoice,
        file=f"{victim.invoice}.pdf",
        upload=begun.headers["location"].rpartition("/")[2],
    )
    before = await of(victim, database, await contents(database))
    problems = []
    for route in routes_of(ada):
        if not route.parameters & OBJECTS:
            continue
        for caller, right in ((_stranger(ada), 401), (ada, 404)):
            token = {"Authorization": f"Bearer {caller.token}"} if caller.token else {}
            found = []
            for more, body in _TRIES:
                answer = await caller.http.request(
                    route.method, route.fill(theirs), headers={**token, **more}, content=body
                )
                found.append(answer.status_code)
                if MARK.lower() in answer.text.lower() or answer.status_code < 400:
                    problems.append((str(route), "shown", answer.text[:200]))
            # A route without a session takes the secret of a link, which strangers do not have.
            held = right in found if route.secured else {401, 404}.issuperset(found)
            if not held or max(found) >= 500:
                problems.append((str(route), right, found))
    assert problems == []
    assert await of(victim, database, await contents(database)) == before


async def test_every_answer_keeps_browsers_careful(client: Client) -> None:
    for route in routes_of(client):
        answer = await _stranger(client).http.request(route.method, route.fill(values()))
        assert answer.status_code < 500, route
        if route.secured:
            assert answer.status_code == 401, route
        (policy,) = answer.headers.get_list("content-security-policy")
        assert "default-src 'none'" in policy, route
        assert "unsafe" not in policy, route
        for name in ("cross-origin-opener-policy", "cross-origin-resource-policy", "permissions-policy"):
            assert len(answer.headers.get_list(name)) == 1, (route, name)


@pytest.fixture
async def mine(ada: Client) -> dict[str, str]:
    project = (await ada.create())["createProject"]["id"]
    return values(project=project)


_PARTLY = pytest.mark.parametrize("of", [8, pytest.param(1, marks=pytest.mark.soak)])


@pytest.mark.parametrize("known", [False, True], ids=["anonymous", "signed in"])
@_PARTLY
async def test_no_request_of_a_megabyte_costs_the_loop_a_tenth_of_a_second(
    ada: Client, mine: dict[str, str], known: bool, of: int
) -> None:
    """In processor time of the event loop's thread, the test's own client included."""
    routes = [route for route in routes_of(ada) if route.secured or not known]
    paths = {(route.method, route.fill(mine)): str(route) for route in routes if route.method not in ("GET", "DELETE")}
    paths["POST", "/graphql"] = "POST /graphql"
    slow = []
    for (method, path), name, what, (kind, body) in _some(
        of, [(*each, *body) for each in paths.items() for body in BODIES.items()]
    ):
        client = ada if known else _stranger(ada)
        seconds = await _cost(client, method, path, {"Content-Type": kind, "If-Match": "*"}, body)
        if seconds > _LOOP_S:
            slow.append((name, what, round(seconds, 3)))
    assert slow == []


@_PARTLY
async def test_no_header_costs_the_loop_a_tenth_of_a_second(client: Client, of: int) -> None:
    slow = []
    routes = [*routes_of(client), Route("POST", "/graphql", False)]
    for route, what, (name, value) in _some(of, [(route, *each) for route in routes for each in HEADERS.items()]):
        headers = {"Content-Type": "application/json", name: value.decode()}
        seconds = await _cost(_stranger(client), route.method, route.fill(values()), headers, b"{}")
        if seconds > _LOOP_S:
            slow.append((str(route), what, round(seconds, 3)))
    assert slow == []


def _stranger(client: Client) -> Client:
    """Somebody with an address of their own, whose requests no other test has used up."""
    return Client(client.app, address=next(_ADDRESSES))


def _some(of: int, everything: list[Any]) -> list[Any]:
    """One of each `of` combinations, others in each run."""
    return [each for each in everything if of == 1 or secrets.randbelow(of) == 0]


async def _cost(client: Client, method: str, path: str, headers: dict[str, str], body: bytes) -> float:
    """Of the cheapest of three tries, because other tests share the processor's caches."""
    least = 1e9
    token = {"Authorization": f"Bearer {client.token}"} if client.token else {}
    for _ in range(3):
        began = time.thread_time()
        answer = await client.http.request(method, path, headers={**token, **headers}, content=body)
        least = min(least, time.thread_time() - began)
        assert answer.status_code < 500, (method, path, answer.text[:300])
        assert token or answer.status_code != 429  # which would be cheap
        if least <= _LOOP_S:
            break
    return least
