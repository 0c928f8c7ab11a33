"""An operator's day over GraphQL: the role comes with the session, and goes with it."""

from collections.abc import AsyncIterator

import pyotp
import pytest
from bson import ObjectId
from tests.serving import Client

from ximler.accounts import roles
from ximler.core.actor import Actor
from ximler.database import Database

CLI = Actor(kind="operator", via="cli")
LOCK = 'mutation ($id: ID!) { lockUser(id: $id, reason: "a test") { lockedAt lockReason sessions { id } } }'
USER = "query ($id: ID!) { user(id: $id) { email role secondFactor sessions { address } history { action count } } }"


async def id_of(client: Client) -> str:
    return str((await client.ask("{ me { id } }"))["me"]["id"])


@pytest.fixture
async def grace(app: object, database: Database) -> AsyncIterator[Client]:
    """An operator."""
    grace = await Client(app).join("grace@example.com")  # type: ignore[arg-type]
    await roles.grant(database, CLI, ObjectId(await id_of(grace)), "operator")
    await grace.sign_in("grace@example.com")
    yield grace
    await grace.http.aclose()


@pytest.mark.slow
async def test_an_operator_finds_views_locks_and_unlocks_an_account(grace: Client, ada: Client) -> None:
    ada_id = await id_of(ada)
    found = await grace.ask('{ users(search: "ada@") { nodes { id email lockedAt } pageInfo { hasNextPage } } }')
    assert [node["email"] for node in found["users"]["nodes"]] == ["ada@example.com"]
    seen = (await grace.ask(USER, id=ada_id))["user"]
    assert (seen["role"], seen["secondFactor"], len(seen["sessions"])) == (None, False, 1)
    assert "accounts.session.started" in {event["action"] for event in seen["history"]}
    locked = (await grace.ask(LOCK, id=ada_id))["lockUser"]
    assert (locked["lockReason"], locked["sessions"]) == ("a test", [])
    assert (await ada.ask("{ me { id } }")).status == 401
    assert (await ada.sign_in("ada@example.com")).code == "ACCOUNT_LOCKED"
    opened = await grace.ask("mutation ($id: ID!) { unlockUser(id: $id) { lockedAt } }", id=ada_id)
    assert opened["unlockUser"]["lockedAt"] is None
    assert (await ada.sign_in("ada@example.com")).errors == []
    ended = await grace.ask("mutation ($id: ID!) { revokeUserSessions(id: $id) }", id=ada_id)
    assert ended["revokeUserSessions"] == 1
    assert (await grace.ask("mutation ($id: ID!) { verifyUser(id: $id) { emailVerified } }", id=ada_id)).errors == []


@pytest.mark.slow
async def test_an_operator_removes_a_lost_second_factor(grace: Client, ada: Client, database: Database) -> None:
    secret = (await ada.ask("mutation { beginTotp { secret } }"))["beginTotp"]["secret"]
    code = pyotp.TOTP(secret).at(database.clock.now())
    assert (await ada.ask("mutation ($c: String!) { confirmTotp(code: $c) }", c=code)).errors == []
    remove, ada_id = "mutation ($id: ID!) { removeSecondFactor(id: $id) { secondFactor } }", await id_of(ada)
    assert (await ada.ask(remove, id=ada_id)).code == "FORBIDDEN"
    assert (await ada.sign_in("ada@example.com")).code == "SECOND_FACTOR_REQUIRED"
    assert (await grace.ask(remove, id=ada_id))["removeSecondFactor"] == {"secondFactor": False}
    assert (await ada.sign_in("ada@example.com")).errors == []
    assert (await grace.ask(remove, id=ada_id)).code == "NOT_FOUND"


async def test_a_withdrawn_role_ends_at_once(grace: Client, database: Database) -> None:
    assert (await grace.ask("{ users { nodes { id } } }")).errors == []
    await roles.withdraw(database, CLI, ObjectId(await id_of(grace)))
    await grace.sign_in("grace@example.com")
    assert (await grace.ask("{ users { nodes { id } } }")).code == "FORBIDDEN"


async def test_operators_actions_are_audited_with_operator_and_user(
    grace: Client, ada: Client, database: Database
) -> None:
    ada_id, grace_id = await id_of(ada), await id_of(grace)
    await grace.ask(LOCK, id=ada_id)
    entry = await database.raw["auditlogs"].find_one({"action": "accounts.user.locked"})
    assert entry is not None
    assert (str(entry["userId"]), str(entry["metadata"]["actorId"])) == (ada_id, grace_id)
    assert entry["metadata"]["actor"] == "operator"


async def test_a_throttled_sign_in_says_when_to_come_back(client: Client) -> None:
    for _ in range(5):
        assert (await client.sign_in("nobody@example.com", "a wrong guess")).code == "BAD_CREDENTIALS"
    refused = await client.sign_in("nobody@example.com", "a wrong guess")
    assert refused.code == "TOO_MANY_ATTEMPTS"
    assert refused.errors[0]["extensions"]["retryAfter"] in (1, 2)
    pages = [await client.http.post("/reset/request", data={"email": "nobody@example.com"}) for _ in range(6)]
    assert [page.status_code for page in pages] == [200] * 5 + [429]
    assert 55 <= int(pages[-1].headers["retry-after"]) <= 60


async def test_refusals_are_audited_and_a_flood_leaves_few_entries(ada: Client, database: Database) -> None:
    for _ in range(12):
        assert (await ada.ask("{ users { nodes { id } } }")).code == "FORBIDDEN"
    entries = await database.raw["auditlogs"].find({"action": "graphql.request.refused"}).sort("_id").to_list()
    assert [entry["metadata"]["count"] for entry in entries] in (
        [1, 10],
        [1, 1],
        [1, 1, 10],
        [1, 10, 1],
    )  # a minute may end
    assert entries[0]["metadata"]["reason"] == "FORBIDDEN"
    assert str(entries[0]["userId"]) == await id_of(ada)
