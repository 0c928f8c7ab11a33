"""Recording usage over REST and GraphQL."""

import asyncio
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.serving import Client

from ximler.apikeys import keys
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.metering.ledger import settlement


@pytest.fixture
async def key(ada: Client, database: Database) -> Client:
    """A program of Ada's that may record usage."""
    return await with_scope(ada, database, "usage:write")


async def with_scope(ada: Client, database: Database, *scopes: str) -> Client:
    user_id = ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])
    operator = Actor(kind="operator", via="cli")
    made = await keys.create(database, operator, name="gateway", permissions=list(scopes), user_id=user_id)
    program = Client(ada.app)
    program.token = made.secret
    return program


def events(database: Database, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": str(n), "at": database.clock.now(), **fields} for n in range(count)]


async def test_a_program_records_as_lines_or_as_an_array(key: Client, database: Database) -> None:
    sent = events(database, 7)
    lines = b"\n".join(map(msgspec.json.encode, sent))
    answer = await key.http.post("/v1/usage/events", content=lines, headers=head(key, "application/x-ndjson"))
    assert answer.status_code == 200
    assert answer.json() == {"lines": 7, "accepted": 7, "duplicates": 0, "refused": [], "complete": True}
    body = msgspec.json.encode([*sent, {"id": "more", "at": "yesterday"}])
    answer = await key.http.post("/v1/usage/events", content=body, headers=head(key, "application/json"))
    assert (answer.json()["accepted"], answer.json()["duplicates"]) == (0, 7)
    assert answer.json()["refused"] == [
        {"line": 8, "status": "INVALID", "reason": "at: Invalid RFC3339 encoded datetime"}
    ]
    await settlement.settle(database)
    [row] = await database.usage.find({"metadata.recorded.through": {"$exists": True}})
    assert sum(row.metadata["recorded"]["periods"].values()) == 7


@pytest.mark.slow
async def test_reporting_is_free_and_never_refused_by_the_quota(ada: Client, key: Client, database: Database) -> None:
    async def report(number: int, amount: int) -> Any:
        line = msgspec.json.encode({"id": str(number), "at": database.clock.now(), "amount": amount})
        answer = await key.http.post("/v1/usage/events", content=line, headers=head(key, "application/x-ndjson"))
        await settlement.settle(database)
        return answer

    for number, (amount, total) in enumerate([(990, 990), (20, 1010), (3, 1013)]):
        answer = await report(number, amount)
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        assert (await ada.ask("{ quota(resource: apiCalls) { used } }"))["quota"]["used"] == total
    refused = await key.http.post("/graphql", json={"query": "{ plans { id } }"}, headers=head(key, "application/json"))
    assert refused.status_code == 429
    assert refused.json()["errors"][0]["extensions"]["fields"]["used"] == 1013


@pytest.mark.slow
async def test_a_stream_may_be_longer_than_any_other_body(key: Client, database: Database) -> None:
    async def body() -> Any:
        for event in events(database, 3000, source="x" * 100):
            yield msgspec.json.encode(event) + b"\n"

    answer = await key.http.post("/v1/usage/events", content=body(), headers=head(key, "application/x-ndjson"))
    assert answer.json()["accepted"] == 3000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json"])
async def test_a_stream_ends_when_its_key_is_revoked(kind: str, key: Client, database: Database) -> None:
    first, second = (msgspec.json.encode(event) for event in events(database, 2))
    opened, between, closed = (b"", b"\n", b"\n") if kind.endswith("ndjson") else (b"[", b",", b"]")

    async def body() -> Any:
        yield opened + first + between
        (made,) = await database.api_keys.find({})
        await keys.revoke(database, Actor(kind="operator", via="cli"), made.id)
        await asyncio.sleep(1)  # within which a revocation holds
        yield second + closed

    answer = await key.http.post("/v1/usage/events", content=body(), headers=head(key, kind))
    assert (answer.status_code, answer.json()["code"]) == (401, "API_KEY_REFUSED")
    assert await database.raw["usageevents"].count_documents({}) == 0


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("text/csv", b"a,b", "send application/x-ndjson"),
        ("application/json", b"{}", "not a JSON array"),
        ("application/json", b"[1", "not a JSON array"),
    ],
)
async def test_other_content_types_are_rejected(kind: str, body: bytes, says: str, key: Client) -> None:
    answer = await key.http.post("/v1/usage/events", content=body, headers=head(key, kind))
    assert answer.status_code == 422
    assert says in answer.text


async def test_recording_usage_requires_permission(ada: Client, client: Client, database: Database) -> None:
    reader = await with_scope(ada, database, "usage:read")
    for who, status in ((client, 401), (ada, 403), (reader, 403)):
        answer = await who.http.post("/v1/usage/events", content=b"[]", headers=head(who, "application/json"))
        assert answer.status_code == status
    said = await ada.ask('mutation { recordUsage(events: [{id: "a", at: "2026-01-01T00:00:00Z"}]) { status } }')
    assert said.code == "FORBIDDEN"


def head(who: Client, kind: str) -> dict[str, str]:
    return {"Content-Type": kind} | ({"Authorization": f"Bearer {who.token}"} if who.token else {})
