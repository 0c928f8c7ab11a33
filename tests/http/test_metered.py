"""Requests with an API key: each is paid for before it is answered,
and those that are refused cost nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from litestar import Litestar, asgi, get, post
from litestar.params import FromPath
from tests.serving import Client, serve

from ximler.accounts.keyring import Keyring
from ximler.apikeys import keys
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.http.authentication import signed_in
from ximler.http.metered import Prices
from ximler.metering.ledger import settlement
from ximler.metering.limits import entitlements
from ximler.metering.quota.meter import Meter
from ximler.schema.quota import QUOTAS
from ximler.schema.session import SESSIONS

OPERATOR = Actor(kind="operator", via="cli")
PLANS = "{ plans { id } }"


@pytest.fixture
async def user_id(ada: Client) -> ObjectId:
    return ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])


@pytest.fixture
async def program(ada: Client, user_id: ObjectId, database: Database) -> AsyncIterator[Client]:
    """A program that has a key of Ada's."""
    somebody = await a_program(ada, user_id, database)
    yield somebody
    await meter_of(ada).close()
    meter_of(ada)._closed = False
    await somebody.http.aclose()


@pytest.fixture
async def recorder(ada: Client, user_id: ObjectId, database: Database) -> AsyncIterator[Client]:
    """A program whose key may record usage."""
    somebody = await a_program(ada, user_id, database, permissions=("usage:read", "usage:write", "projects:write"))
    yield somebody
    await meter_of(ada).close()
    meter_of(ada)._closed = False
    await somebody.http.aclose()


async def a_program(
    ada: Client,
    user_id: ObjectId,
    database: Database,
    app: Any = None,
    *,
    permissions: tuple[str, ...] = ("billing:read", "projects:read", "projects:write"),
) -> Client:
    made = await keys.create(database, OPERATOR, name="program", permissions=list(permissions), user_id=user_id)
    return Client(app or ada.app, token=made.secret)


def meter_of(client: Client) -> Meter:
    meter: Meter = client.app._app.state.meter  # type: ignore[attr-defined]  # inside `Requests`
    return meter


async def allow(database: Database, user_id: ObjectId, calls: int) -> None:
    await entitlements.override(database, OPERATOR, user_id, api_calls=calls, reason="a test")


async def used(client: Client, database: Database) -> dict[str, int]:
    """By route, as the ledger has it."""
    await meter_of(client).sweep()
    await meter_of(client).sweep()
    rows = await database.usage.find({"resourceType": "apiCalls"})
    parts = [part for row in rows for part in row.metadata["leased"].values()]
    assert sum(row.amount for row in rows) == sum(sum(part["routes"].values()) for part in parts), parts
    return {route: sum(part["routes"].get(route, 0) for part in parts) for part in parts for route in part["routes"]}


@pytest.mark.slow
async def test_each_request_is_counted_and_returns_the_remaining_quota(program: Client, database: Database) -> None:
    answers = [await program.ask(PLANS) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert [answer.headers["ratelimit"].split('"month";r=')[1].split(";")[0] for answer in answers] == [
        "999",
        "998",
        "997",
    ]
    assert answers[0].headers["ratelimit-policy"] == '"burst";q=100;w=2, "month";q=1000'
    assert answers[0].headers["ratelimit"].startswith('"burst";r=')
    assert await used(program, database) == {"/graphql": 3}


@pytest.mark.slow
async def test_requests_above_the_limit_are_rejected_with_the_reset_time(
    program: Client, user_id: ObjectId, database: Database
) -> None:
    await allow(database, user_id, 2)
    assert [(await program.create(f"p{n}")).status for n in range(2)] == [200, 200]
    response = await program.http.post(
        "/graphql",
        json={"query": 'mutation { createProject(input: {name: "x"}) { id } }'},
        headers={"Authorization": f"Bearer {program.token}"},
    )
    [error] = response.json()["errors"]
    problem = error["extensions"]
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert (problem["code"], problem["kind"]) == ("QUOTA_EXCEEDED", "LIMIT_EXCEEDED")
    assert problem["fields"]["apiCalls"] == "limit 2 reached"
    assert problem["fields"]["used"] == 2
    assert "resetsAt" in problem["fields"]
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["ratelimit"].startswith('"month";r=0;t=')
    assert await database.projects.count({}) == 2
    assert await used(program, database) == {"/graphql": 2}


async def test_past_the_limit_a_route_answers_with_problem_details(
    program: Client, user_id: ObjectId, database: Database
) -> None:
    await allow(database, user_id, 1)
    answers = [
        await program.http.get("/v1/nowhere", headers={"Authorization": f"Bearer {program.token}"}) for _ in range(2)
    ]
    problem = answers[1].json()
    assert [answer.status_code for answer in answers] == [404, 429]
    assert answers[1].headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem["fields"]["used"]) == ("QUOTA_EXCEEDED", 1)
    assert problem["requestId"] == answers[1].headers["x-request-id"]


@pytest.mark.slow
async def test_recording_usage_is_free_and_never_refused_by_the_months_quota(
    recorder: Client, user_id: ObjectId, database: Database
) -> None:
    await allow(database, user_id, 1000)
    month = "{ usage { resource used } }"
    record = "mutation ($events: [UsageEventInput!]!) { recordUsage(events: $events) { status } }"
    used_up = 0
    for n, amount in enumerate((990, 20, 5)):
        event = {"id": f"e{n}", "at": database.clock.now().isoformat(), "amount": amount}
        answer = await recorder.ask(record, events=[event])
        assert (answer.status, answer["recordUsage"]) == (200, [{"status": "ACCEPTED"}])
        assert '"month"' not in answer.headers["ratelimit"]
        await settlement.settle(database)
        used_up += amount
        [quota] = await database[QUOTAS].find({"userId": user_id, "resource": "apiCalls"})
        assert quota.used == used_up
    await meter_of(recorder).sweep()
    refused = await recorder.ask(month)
    assert (refused.status, refused.code, refused.fields["used"]) == (429, "QUOTA_EXCEEDED", used_up)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", ['a: recordUsage(events: $e) { status } createProject(input: {name: "x"}) { id }', "a: __typename"]
)
async def test_an_operation_that_does_more_than_record_usage_costs_a_call(
    recorder: Client, database: Database, more: str
) -> None:
    event = {"id": "e", "at": database.clock.now().isoformat()}
    mutation = f"mutation ($e: [UsageEventInput!]!) {{ recordUsage(events: $e) {{ status }} {more} }}"
    assert (await recorder.ask(mutation, e=[event])).status == 200
    assert await used(recorder, database) == {"/graphql": 1}


async def test_requests_that_cannot_be_executed_cost_no_call(program: Client, database: Database) -> None:
    await program.ask("{ nothing }")
    await program.ask("{")
    assert await used(program, database) == {}


@pytest.mark.slow
async def test_of_many_at_once_exactly_as_many_are_served_as_are_left(
    program: Client, user_id: ObjectId, database: Database
) -> None:
    await allow(database, user_id, 10)
    answers = await asyncio.gather(*(program.ask(PLANS) for _ in range(40)))
    assert sorted(answer.status for answer in answers) == [200] * 10 + [429] * 30
    assert await used(program, database) == {"/graphql": 10}


async def test_an_invalid_key_costs_nothing(program: Client, database: Database) -> None:
    broken = Client(program.app, token=f"{program.token}x")
    answer = await broken.ask(PLANS)
    assert (answer.status, answer.code) == (401, "API_KEY_REFUSED")
    assert "ratelimit" not in answer.headers
    assert await used(program, database) == {}


async def test_people_and_pages_of_operation_are_not_metered(ada: Client, program: Client, database: Database) -> None:
    assert "ratelimit" not in (await ada.ask(PLANS)).headers
    health = await program.http.get("/healthz", headers={"Authorization": f"Bearer {program.token}"})
    assert health.status_code == 200
    assert "ratelimit" not in health.headers
    assert await used(program, database) == {}


async def test_unknown_paths_are_metered_under_one_name(program: Client, database: Database) -> None:
    for path in ("/nothing", "/nor/here"):
        response = await program.http.get(path, headers={"Authorization": f"Bearer {program.token}"})
        assert response.status_code == 404
    assert await used(program, database) == {"other": 2}


@pytest.mark.slow
async def test_a_rejected_burst_does_not_count_against_the_month(
    settings: Settings, mongodb_uri: str, ada: Client, user_id: ObjectId, database: Database
) -> None:
    slow = msgspec.structs.replace(settings, database=database.name, api_rate=1, api_burst=3)
    async with serve(slow, mongodb_uri) as app:
        program = await a_program(ada, user_id, database, app)
        answers = await asyncio.gather(*(program.ask(PLANS) for _ in range(8)))
        served = [answer for answer in answers if answer.status == 200]
        assert 3 <= len(served) <= 4
        refused = await program.http.post(
            "/graphql", json={"query": PLANS}, headers={"Authorization": f"Bearer {program.token}"}
        )
        assert refused.headers["content-type"] == "application/json; charset=utf-8"
        assert refused.status_code == 429
        assert refused.json()["errors"][0]["extensions"]["code"] == "BURST_EXCEEDED"  # as GraphQL's other errors
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["ratelimit"] == '"burst";r=0;t=1'
        # Another key of the same user has a bucket of its own, until the user's is empty.
        other = await a_program(ada, user_id, database, app)
        more = await asyncio.gather(*(other.ask(PLANS) for _ in range(8)))
        assert 2 <= sum(answer.status == 200 for answer in more) <= 4
        total = len(served) + sum(answer.status == 200 for answer in more)
        assert await used(program, database) == {"/graphql": total}


@pytest.mark.slow
async def test_a_page_of_a_listed_origin_sees_why_it_is_refused(
    settings: Settings, mongodb_uri: str, ada: Client, user_id: ObjectId, database: Database
) -> None:
    ours = "https://app.example.com"
    listing = msgspec.structs.replace(settings, database=database.name, cors_origins=(ours,), api_rate=1, api_burst=1)
    async with serve(listing, mongodb_uri) as app:
        program = await a_program(ada, user_id, database, app)
        for origin in (ours, "https://evil.example.com"):
            refused = None
            while refused is None or refused.status_code != 429:
                refused = await program.http.post(
                    "/graphql",
                    json={"query": PLANS},
                    headers={"Authorization": f"Bearer {program.token}", "Origin": origin},
                )
            assert refused.headers.get("access-control-allow-origin") == (ours if origin == ours else None)
            exposed = refused.headers.get("access-control-expose-headers", "").lower()
            assert ("ratelimit" in exposed) == (origin == ours)


def test_a_route_declares_its_price_and_names_itself_by_its_template() -> None:
    @get("/projects/{project_id:str}/files/{name:str}", opt={"api_calls": 5})
    async def file(project_id: FromPath[str], name: FromPath[str]) -> str:
        return name

    @post("/projects", **signed_in(scope="projects:write"))
    async def create() -> None: ...

    @get("/docs")
    async def for_everybody() -> None: ...

    @get("/free", opt={"api_calls": 0})
    async def free() -> None: ...

    @asgi("/raw", copy_scope=False)
    async def raw(scope: Any, receive: Any, send: Any) -> None: ...

    prices = Prices(Litestar([file, create, for_everybody, free, raw], openapi_config=None).routes)
    assert prices.of("/projects/1/files/a.png") == ("/projects/{project_id}/files/{name}", 5)
    assert prices.of("/projects") == ("/projects", 1)
    assert prices.of("/projects/") == ("/projects", 1)
    assert prices.of("/free") == ("/free", 0)
    assert prices.of("/docs") == ("/docs", 0)
    assert prices.of("/raw") == ("/raw", 0)
    assert prices.of("/projects/1/files") == ("other", 1)


@pytest.mark.slow
@pytest.mark.parametrize("between", [" ", "  ", " \t", "\t ", " \u00a0", " \u0085 "])
async def test_a_key_is_paid_for_however_its_header_is_spaced(
    program: Client, database: Database, between: str
) -> None:
    response = await program.http.post(
        "/graphql",
        json={"query": PLANS},
        headers={"Authorization": f"bearer{between}{program.token}".encode("latin-1")},
    )
    served = response.status_code == 200
    assert await used(program, database) == ({"/graphql": 1} if served else {})


async def test_two_authorization_headers_are_rejected(program: Client, database: Database) -> None:
    for first, second in ((f"Bearer {program.token}", "Bearer x"), ("Bearer x", f"Bearer {program.token}")):
        response = await program.http.post(
            "/graphql", json={"query": PLANS}, headers=[("Authorization", first), ("Authorization", second)]
        )
        assert response.status_code == 400
    assert await used(program, database) == {}


async def test_a_session_whose_token_looks_a_little_like_a_key_is_not_metered(ada: Client, database: Database) -> None:
    made: Keyring = ada.app._app.state.keyring  # type: ignore[attr-defined]  # inside `Requests`
    token = "A" * 20 + "xim_" + "A" * 19
    ids = [session.id for session in await database[SESSIONS].find({})]
    session = (await database[SESSIONS].find({"_id": ids[0]}))[0]
    await database[SESSIONS].insert(msgspec.structs.replace(session, id=made.token_ids(token)[0]))
    answer = await Client(ada.app, token=token).ask("{ me { id } }")
    assert answer.status == 200
    assert "ratelimit" not in answer.headers


@pytest.mark.slow
async def test_a_key_that_is_revoked_while_its_request_arrives_opens_nothing(
    program: Client, user_id: ObjectId, database: Database
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"query":'
        (key,) = await database.api_keys.find({"userId": user_id})
        await keys.revoke(database, OPERATOR, key.id)
        await asyncio.sleep(1)  # within which a revocation holds
        yield msgspec.json.encode(PLANS) + b"}"

    response = await program.http.post(
        "/graphql",
        content=body(),
        headers={"Authorization": f"Bearer {program.token}", "Content-Type": "application/json"},
    )
    assert (response.status_code, response.json()["errors"][0]["extensions"]["code"]) == (401, "API_KEY_REFUSED")


@pytest.mark.slow
async def test_root_fields_beyond_the_tenth_cost_a_call_each(
    ada: Client, user_id: ObjectId, database: Database
) -> None:
    program = await a_program(ada, user_id, database, permissions=("usage:read",))
    for count, left in ((10, 999), (13, 995)):
        fields = " ".join(f"f{n}: usage {{ used }}" for n in range(count))
        answer = await program.ask(f"{{ {fields} }}")
        assert not answer.errors
        assert f'"month";r={left};' in answer.headers["ratelimit"]
