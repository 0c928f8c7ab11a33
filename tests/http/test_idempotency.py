"""`Idempotency-Key` over REST, where a request does something new each time."""

from typing import Any

import httpx
from tests.serving import PASSWORD, Client

from ximler.database import Database

OURS = {"Sec-Fetch-Site": "same-origin", "Idempotency-Key": "a-key"}


async def sign_in(client: Client, *, password: str = PASSWORD, **headers: Any) -> httpx.Response:
    client.http.cookies.clear()
    body = {"email": "ada@example.com", "password": password}
    return await client.http.post("/v1/session", json=body, headers={**OURS, **headers})


async def test_a_browser_that_signs_in_twice_with_a_key_has_one_session(
    ada: Client, client: Client, database: Database
) -> None:
    before = await database.raw["sessions"].count_documents({})
    first, again = await sign_in(client), await sign_in(client)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.headers["set-cookie"] == again.headers["set-cookie"]
    assert first.content == again.content
    assert (first.headers.get("idempotency-replayed"), again.headers.get("idempotency-replayed")) == (None, "true")
    assert await database.raw["sessions"].count_documents({}) == before + 1
    other = await sign_in(client, password="another password")
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_what_was_refused_may_be_tried_again_with_the_same_key(ada: Client, client: Client) -> None:
    foreign = await sign_in(client, **{"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    assert (await sign_in(client, password="a wrong guess")).status_code == 401
    assert (await sign_in(client)).status_code == 200


async def test_a_key_that_is_none_and_a_body_without_end_are_refused(client: Client) -> None:
    assert (await sign_in(client, **{"Idempotency-Key": "a key"})).status_code == 422
    large = await client.http.post("/v1/session", content=b"x" * 1_100_000, headers=OURS)
    assert large.status_code in (413, 422)
