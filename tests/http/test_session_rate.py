"""The rate of changes that a user's sessions make: no free account fills the disk."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.serving import Client, serve

from ximler.core.settings import Settings
from ximler.database import Database

pytestmark = pytest.mark.slow

TWO = 'mutation { a: createProject(input: {name: "A"}) { id } b: createProject(input: {name: "B"}) { id } }'
REVOKE = "mutation { revokeOtherSessions }"


@pytest.fixture
async def limited(
    settings: Settings, mongodb_uri: str, ada: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    """Ada, whose sessions may make three changes; no time passes for the limit."""
    monkeypatch.setattr("ximler.http.authentication.monotonic", lambda: 1000.0)
    slow = msgspec.structs.replace(settings, database=database.name, session_rate=1, session_burst=3)
    async with serve(slow, mongodb_uri) as app:
        limited = Client(app, token=ada.token)
        yield limited
        await limited.http.aclose()


async def test_each_field_of_a_mutation_counts_and_queries_do_not(limited: Client, database: Database) -> None:
    assert (await limited.ask(TWO)).errors == []
    assert (await limited.create()).errors == []
    refused = await limited.create()
    assert (refused.status, refused.code) == (429, "BURST_EXCEEDED")
    assert refused.headers["retry-after"] == "1"
    assert "changes a second" in refused.fields["burst"]
    assert (await limited.ask("{ me { id } }")).status == 200
    assert await database.projects.count({}) == 3


async def test_a_day_has_its_own_limit(settings: Settings, mongodb_uri: str, ada: Client, database: Database) -> None:
    few = msgspec.structs.replace(settings, database=database.name, session_daily=2)
    async with serve(few, mongodb_uri) as app:
        limited = Client(app, token=ada.token)
        assert (await limited.ask(TWO)).errors == []
        refused = await limited.create()
        assert (refused.status, refused.fields["burst"]) == (429, "2 changes a day")
        assert refused.headers["retry-after"] == "3600"
        await limited.http.aclose()


async def test_rest_and_graphql_share_the_limit(limited: Client) -> None:
    for _ in range(3):
        await limited.create()
    refused = await limited.http.put(
        "/v1/avatar", content=b"no picture", headers={"Authorization": f"Bearer {limited.token}"}
    )
    assert (refused.status_code, refused.json()["code"]) == (429, "BURST_EXCEEDED")
    assert refused.headers["retry-after"] == "1"


async def test_imports_by_url_are_limited_apart_from_the_sessions_and_audited_with_their_address(
    limited: Client, database: Database
) -> None:
    """One that fails can be sent again, and each has up to three entries in the audit log."""
    made = (await limited.ask("mutation { createProjectImport { projectId url } }"))["createProjectImport"]
    sent = [(await limited.http.put(made["url"], content=body)).status_code for body in (b"[", b"[", b"{}", b"[")]
    assert sent == [422, 422, 201, 429]
    assert (await limited.create()).errors == []
    entry = await database.audit_logs.find_one({"resourceId": made["projectId"]})
    assert entry is not None
    assert (entry.ip_address, entry.user_agent) == ("192.0.2.1", limited.http.headers["user-agent"])


async def test_a_session_can_always_be_ended(limited: Client) -> None:
    for _ in range(3):
        await limited.create()
    assert (await limited.create()).code == "BURST_EXCEEDED"
    assert (await limited.ask(REVOKE))["revokeOtherSessions"] == 0
    assert (await limited.ask("mutation { signOut __typename }"))["signOut"] is True
    assert (await limited.ask("{ me { id } }")).status == 401


async def test_an_address_has_a_burst_limit_for_reads_too(
    settings: Settings, mongodb_uri: str, ada: Client, database: Database
) -> None:
    few = msgspec.structs.replace(settings, database=database.name, address_rate=1, address_burst=3)
    async with serve(few, mongodb_uri) as app:
        limited, here = (Client(app, token=ada.token, address=each) for each in ("192.0.2.1", "127.0.0.1"))
        other = Client(app, address="192.0.2.2")
        for _ in range(3):
            assert (await limited.ask("{ me { id } }")).errors == []
        assert (await limited.ask("{ me { id } }")).code == "BURST_EXCEEDED"
        refused = await Client(app).http.get("/v1/session")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await other.ask("{ plans { id } }")).errors == []
        for _ in range(5):
            assert (await here.ask("{ me { id } }")).errors == []


async def test_a_session_and_a_user_have_burst_limits_from_any_address(
    settings: Settings, mongodb_uri: str, ada: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ximler.http.authentication.monotonic", lambda: 1000.0)
    few = msgspec.structs.replace(settings, database=database.name, address_rate=1, address_burst=3)
    async with serve(few, mongodb_uri) as app:

        async def read(n: int, token: str | None, path: str = "/graphql") -> int:
            client = Client(app, token=token, address=f"192.0.2.{n}")
            if path == "/graphql":
                return (await client.ask("{ me { id } }")).status
            return (await client.http.get(path, headers={"Authorization": f"Bearer {token}"})).status_code

        others = [Client(app, address=f"192.0.2.10{n}") for n in range(2)]
        for other in others:
            await other.sign_in("ada@example.com")
        stolen, own, third = ada.token, *(other.token for other in others)
        assert [await read(n, stolen) for n in range(5)] == [200, 200, 200, 429, 429]
        assert await read(6, stolen, "/v1/export") == 429  # REST and GraphQL share it
        assert [await read(10 + n, own) for n in range(3)] == [200, 200, 200]
        assert await read(20, third) == 429  # the user's
        assert await read(21, None) == 200  # nobody's
