"""`Idempotency-Key` over GraphQL."""

import asyncio
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


async def test_what_was_refused_may_be_tried_again_with_the_same_key(ada: Client) -> None:
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


async def test_a_key_that_is_none_is_refused(ada: Client) -> None:
    assert (await send(ada, CREATE, "a key", name="Bridge")).code == "INVALID"
