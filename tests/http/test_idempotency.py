"""`Idempotency-Key` over REST, on routes that are not idempotent by themselves."""

from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs
from tests.serving import PASSWORD, Client

from ximler.database import Database
from ximler.http.authentication import Authentication
from ximler.metering.quota.bursts import BurstExceeded

BODY = msgspec.json.encode({"email": "ada@example.com", "password": PASSWORD})
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


@pytest.mark.slow
async def test_a_rejected_request_can_be_retried_with_the_same_key(ada: Client, client: Client) -> None:
    foreign = await sign_in(client, **{"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    assert (await sign_in(client, password="a wrong guess")).status_code == 401
    assert (await sign_in(client)).status_code == 200


@pytest.mark.slow
async def test_a_caller_who_is_not_known_at_the_moment_is_not_taken_for_a_stranger(
    ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response would be kept for the address, and the repeated request be carried out again."""
    project = (await ada.create())["createProject"]["id"]
    identify, refusals = Authentication.identify, [BurstExceeded("Too fast", retry_after_s=1)]

    async def identify_later(self: Authentication, scope: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await identify(self, scope)

    monkeypatch.setattr(Authentication, "identify", identify_later)
    headers = {"Authorization": f"Bearer {ada.token}", "Idempotency-Key": "a-key"}
    sent = [await ada.http.post(f"/v1/projects/{project}/versions", json={}, headers=headers) for _ in range(3)]
    assert [each.status_code for each in sent] == [429, 201, 201]
    assert sent[1].json()["id"] == sent[2].json()["id"]


async def test_malformed_keys_and_truncated_bodies_are_rejected(client: Client) -> None:
    assert (await sign_in(client, **{"Idempotency-Key": "a key"})).status_code == 422
    large = await client.http.post("/v1/session", content=b"x" * 1_100_000, headers=OURS)
    assert large.status_code in (413, 422)


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "a-key"}])
async def test_a_client_that_leaves_before_the_end_of_its_body_has_sent_nothing(
    ada: Client, database: Database, key: dict[str, str]
) -> None:
    """What came so far may be complete JSON: it is not carried out."""
    messages = iter([{"type": "http.request", "body": BODY, "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []
    before = await database.raw["sessions"].count_documents({})

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    head = {"host": "test", "content-type": "application/json", **OURS, "Idempotency-Key": "", **key}
    headers = [(name.lower().encode(), value.encode()) for name, value in head.items() if value]
    with capture_logs() as logs:
        await ada.app(
        {"type": "http", "method": "POST", "path": "/v1/session", "raw_path": b"/v1/session", "query_string": b"",
         "headers": headers, "client": ("127.0.0.1", 1), "server": ("test", 80), "scheme": "http", "root_path": "",
         "http_version": "1.1", "asgi": {"version": "3.0"}},
        receive, send,
        )  # fmt: skip
    assert await database.raw["sessions"].count_documents({}) == before
    assert await database.raw["replies"].count_documents({}) == 0
    assert [message.get("status") for message in sent] in ([], [499, None])
    assert "request failed" not in [line["event"] for line in logs]
