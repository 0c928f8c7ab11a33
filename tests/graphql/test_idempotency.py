"""`Idempotency-Key` over GraphQL."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.serving import CONFIRM, PASSWORD, Answer, Client

from ximler.accounts import sessions
from ximler.core.errors import Unavailable
from ximler.database import Database

CREATE = "mutation ($name: String!) { createProject(input: {name: $name}) { id name } }"


async def send(client: Client, query: str, key: str, /, **variables: Any) -> Answer:
    headers = {"Authorization": f"Bearer {client.token}"} if client.token else {}
    body = {"query": query, "variables": variables}
    return client.read(await client.http.post("/graphql", json=body, headers={**headers, "Idempotency-Key": key}))


async def test_a_project_is_created_once_however_often_it_is_asked_for(ada: Client, database: Database) -> None:
    answers = [await send(ada, CREATE, "a-key", name="Bridge") for _ in range(3)]
    assert len({answer["createProject"]["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    other = await send(ada, CREATE, "a-key", name="Tower")
    assert (other.status, other.code) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert await database.raw["projects"].count_documents({}) == 1
    assert (await send(ada, CREATE, "another-key", name="Bridge"))["createProject"]["name"] == "Bridge"


async def test_of_racing_requests_one_creates_and_the_others_wait_or_get_its_answer(
    ada: Client, database: Database
) -> None:
    answers = await asyncio.gather(*(send(ada, CREATE, "a-key", name="Bridge") for _ in range(10)))
    assert await database.raw["projects"].count_documents({}) == 1
    for answer in answers:
        if answer.errors:
            assert (answer.status, answer.code) == (409, "IDEMPOTENCY_KEY_IN_USE")
            assert answer.headers["retry-after"] == "1"
            assert answer.errors[0]["extensions"]["retryAfter"] == 1


async def test_a_sign_in_is_answered_again_with_the_same_token_and_kept_secret(
    ada: Client, client: Client, database: Database
) -> None:
    query = f'mutation {{ signIn(email: "ada@example.com", password: "{PASSWORD}") {{ token }} }}'
    first, again = [await send(client, query, "a-key") for _ in range(2)]
    assert first["signIn"]["token"] == again["signIn"]["token"]
    stored = str(await database.raw["replies"].find({}).to_list())
    assert first["signIn"]["token"] not in stored


ENDING = {
    "changePassword": (
        f'mutation {{ changePassword(current: "{PASSWORD}", new: "another horse battery") {{ token user {{ id }} }} }}'
    ),
    "refreshSession": "mutation { refreshSession { token user { id } } }",
    "signOut": "mutation { signOut }",
    "closeAccount": "mutation { closeAccount { __typename } }",
}


@pytest.mark.parametrize("name", ENDING)
async def test_a_request_that_ends_its_own_session_is_answered_again(
    ada: Client, database: Database, name: str
) -> None:
    answers = [await send(ada, ENDING[name], "a-key") for _ in range(2)]
    await long_ago(database)
    answers.append(await send(ada, ENDING[name], "a-key"))
    assert [answer[name] for answer in answers] == [answers[0][name]] * 3
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    # Anything else with the old token is refused, a key of another request is no way around it.
    assert (await send(ada, CREATE, "a-key", name="x")).code == "IDEMPOTENCY_KEY_REUSED"
    assert (await send(ada, ENDING[name], "another-key")).status == 401
    if name == "refreshSession":  # which ended the sign-in: an exchanged token came again, and not as a repeat
        return
    if name == "changePassword":
        fresh = Client(ada.app, token=answers[2][name]["token"])
        assert (await fresh.ask("{ me { id } }"))["me"]["id"] == answers[0][name]["user"]["id"]


async def long_ago(database: Database) -> None:
    """Move the exchange of tokens a minute into the past, so that reuse is not a race."""
    ago = datetime.now(UTC) - timedelta(minutes=1)
    await database.raw["sessions"].update_many({"replacedAt": {"$type": "date"}}, {"$set": {"replacedAt": ago}})


async def test_the_new_token_works_after_a_refresh_that_was_repeated_late(ada: Client, database: Database) -> None:
    tokens = []
    for _ in range(3):
        tokens.append((await send(ada, ENDING["refreshSession"], "a-key"))["refreshSession"]["token"])
        await long_ago(database)
    assert len(set(tokens)) == 1
    assert (await Client(ada.app, token=tokens[0]).ask("{ me { id } }"))["me"]


async def test_the_new_cookie_works_after_a_refresh_that_was_repeated_late(
    ada: Client, client: Client, database: Database
) -> None:
    ours = {"Sec-Fetch-Site": "same-origin"}
    body = {"email": "ada@example.com", "password": PASSWORD}
    signed_in = await client.http.post("/v1/session", json=body, headers=ours)
    old = signed_in.headers["set-cookie"].partition(";")[0]
    cookies = []
    for _ in range(3):
        client.http.cookies.clear()
        response = await client.http.post(
            "/v1/session/refresh", headers={**ours, "Cookie": old, "Idempotency-Key": "a-key"}
        )
        assert response.status_code == 200, response.text
        cookies.append(response.headers["set-cookie"].partition(";")[0])
        await long_ago(database)
    assert len(set(cookies)) == 1
    client.http.cookies.clear()
    me = await client.http.get("/graphql?query={me{id}}", headers={**ours, "Cookie": cookies[0]})
    assert me.json()["data"]["me"]


async def test_a_rejected_request_can_be_retried_with_the_same_key(ada: Client) -> None:
    query = "mutation ($id: ID!) { restoreProject(id: $id) { id } }"
    made = (await ada.create("Bridge"))["createProject"]["id"]
    assert (await send(ada, query, "a-key", id=made)).code == "NOT_FOUND"
    await ada.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=made)
    assert (await send(ada, query, "a-key", id=made))["restoreProject"]["id"] == made


async def test_an_answer_of_which_a_part_was_done_is_kept(ada: Client, database: Database) -> None:
    query = 'mutation { a: createProject(input: {name: "A"}) { id } b: createProject(input: {name: ""}) { id } }'
    for _ in range(3):
        assert (await send(ada, query, "a-key")).code == "INVALID"
    assert await database.raw["projects"].count_documents({}) == 1


async def test_an_account_is_confirmed_once_though_its_session_could_not_be_started(
    client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise Unavailable("the database went away in between")

    token = await client.register("ada@example.com")
    monkeypatch.setattr(sessions, "start", fail)
    assert (await send(client, CONFIRM, "a-key", token=token, password=PASSWORD)).code == "UNAVAILABLE"
    monkeypatch.undo()
    again = await send(client, CONFIRM, "a-key", token=token, password=PASSWORD)
    assert (again.status, again.code) == (409, "IDEMPOTENT_ANSWER_NOT_KEPT")
    assert (await client.sign_in("ada@example.com")).errors == []


async def test_queries_do_without(ada: Client, database: Database) -> None:
    await send(ada, "{ me { id } }", "a-key")
    assert await database.raw["replies"].count_documents({}) == 0


async def test_a_malformed_idempotency_key_is_rejected(ada: Client) -> None:
    assert (await send(ada, CREATE, "a key", name="Bridge")).code == "INVALID"
