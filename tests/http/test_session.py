"""A browser's session: in a cookie that no script reads and no other site can use."""

from typing import Any

import httpx
import pytest
from tests.serving import PASSWORD, Client

from ximler.core.errors import Invalid
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.http.cookies import Cookies

OURS = {"Sec-Fetch-Site": "same-origin"}
ME = {"query": "{ me { email } }"}
RENAME = {"query": 'mutation { updateProfile(name: "Eve") { name } }'}


async def enter(client: Client, email: str = "ada@example.com") -> httpx.Response:
    return await client.http.post("/v1/session", json={"email": email, "password": PASSWORD}, headers=OURS)


@pytest.fixture
async def browser(ada: Client) -> Client:
    """Ada's browser, signed in; it keeps cookies."""
    browser = Client(ada.app)
    assert (await enter(browser)).status_code == 200
    return browser


async def test_signing_in_gives_a_cookie_and_shows_no_token(ada: Client) -> None:
    browser = Client(ada.app)
    answer = await enter(browser)
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    name, _, rest = cookie.partition("=")
    token = rest.partition(";")[0]
    assert name == "ximler"  # plain http on one's own machine
    assert len(token) == 43
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie
    assert token not in answer.text
    assert answer.json()["user"]["email"] == "ada@example.com"
    assert answer.headers["cache-control"] == "no-store"
    me = await browser.http.post("/graphql", json=ME, headers=OURS)
    assert me.json() == {"data": {"me": {"email": "ada@example.com"}}}


def test_over_https_the_cookie_is_bound_to_its_host() -> None:
    cookies = Cookies(Settings(public_url="https://app.example.com"))
    _, value = cookies.give("t", seconds=60)
    assert value == b"__Host-ximler=t; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
    assert cookies.token([(b"cookie", b"ximler=other; __Host-ximler=t")]) == "t"
    assert cookies.token([(b"cookie", b"ximler=other")]) is None


def test_over_plain_http_elsewhere_no_cookie_is_given() -> None:
    with pytest.raises(Invalid, match="https"):
        Cookies(Settings(public_url="http://app.example.com")).give("t", seconds=60)


async def test_a_wrong_password_gives_no_cookie(ada: Client) -> None:
    answer = await Client(ada.app).http.post(
        "/v1/session", json={"email": "ada@example.com", "password": "the wrong one"}, headers=OURS
    )
    assert answer.status_code == 401
    assert answer.json()["code"] == "BAD_CREDENTIALS"
    assert "set-cookie" not in answer.headers


FOREIGN: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://ximler.test"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://ximler.test.evil.example"},
    {"Origin": "https://ximler.test:444"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_cross_site_requests_with_the_cookie_change_nothing(
    browser: Client, database: Database, headers: dict[str, str]
) -> None:
    answer = await browser.http.post("/graphql", json=RENAME, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["extensions"]["code"] == "FOREIGN_ORIGIN"
    assert (await browser.http.delete("/v1/session", headers=headers)).status_code == 403
    assert (await browser.http.post("/v1/session/refresh", headers=headers)).status_code == 403
    stranger = await browser.http.post("/v1/session", json={"email": "e@example.com", "password": "x"}, headers=headers)
    assert stranger.status_code == 403  # nor signs our browser in to an account of its own
    user = await database.raw["users"].find_one({"email": "ada@example.com"})
    assert user is not None
    assert user["name"] == "Ada"
    assert await database.raw["sessions"].count_documents({}) == 2


@pytest.mark.parametrize("headers", [OURS, {"Origin": "http://ximler.test"}, {"Origin": "http://127.0.0.1:8000"}])
async def test_a_page_of_ours_does(browser: Client, headers: dict[str, str]) -> None:
    answer = await browser.http.post("/graphql", json=RENAME, headers=headers)
    assert answer.json() == {"data": {"updateProfile": {"name": "Eve"}}}


async def test_a_form_cannot_use_the_cookie_even_from_an_allowed_origin(browser: Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        headers = {"Origin": "http://ximler.test", "Content-Type": kind}
        answer = await browser.http.post("/v1/session/refresh", content=b"{}", headers=headers)
        assert answer.status_code == 403


async def test_cross_site_links_may_only_read(browser: Client) -> None:
    answer = await browser.http.get("/graphql", params=ME, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200


async def test_a_header_goes_before_the_cookie(browser: Client, ada: Client) -> None:
    answer = await browser.http.post("/graphql", json=ME, headers={"Authorization": "Bearer nothing", **OURS})
    assert answer.status_code == 401
    answer = await browser.http.post("/graphql", json=RENAME, headers={"Authorization": f"Bearer {ada.token}"})
    assert answer.status_code == 200  # a header is no cookie: no other site can make a browser send it


async def test_signing_out_ends_the_session_and_removes_the_cookie(browser: Client, database: Database) -> None:
    token = browser.http.cookies["ximler"]
    answer = await browser.http.delete("/v1/session", headers=OURS)
    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert "ximler" not in browser.http.cookies
    again = await browser.http.post("/graphql", json=ME, headers={**OURS, "Cookie": f"ximler={token}"})
    assert again.status_code == 401
    assert (await browser.http.delete("/v1/session", headers=OURS)).status_code == 204


async def test_signing_out_by_graphql_removes_the_cookie(browser: Client) -> None:
    answer = await browser.http.post("/graphql", json={"query": "mutation { signOut }"}, headers=OURS)
    assert answer.json() == {"data": {"signOut": True}}
    assert "Max-Age=0" in answer.headers["set-cookie"]


@pytest.mark.slow
async def test_a_refresh_gives_a_new_cookie_and_the_old_one_opens_nothing(browser: Client) -> None:
    old = browser.http.cookies["ximler"]
    answer = await browser.http.post("/v1/session/refresh", headers=OURS)
    assert answer.status_code == 200
    assert browser.http.cookies["ximler"] != old
    assert old not in answer.text
    assert (await browser.http.post("/graphql", json=ME, headers=OURS)).status_code == 200
    stale = Client(browser.app)
    answer = await stale.http.post("/graphql", json=ME, headers={**OURS, "Cookie": f"ximler={old}"})
    assert answer.status_code == 401


async def test_every_browser_session_is_a_cookie(browser: Client) -> None:
    old = browser.http.cookies["ximler"]
    change = "mutation ($c: String!, $n: String!) { changePassword(current: $c, new: $n) { token } }"
    variables = {"c": PASSWORD, "n": "another violet anchor drifts"}
    answer = await browser.http.post("/graphql", json={"query": change, "variables": variables}, headers=OURS)
    assert answer.json() == {"data": {"changePassword": {"token": None}}}
    assert browser.http.cookies["ximler"] != old
    assert (await browser.http.post("/graphql", json=ME, headers=OURS)).status_code == 200


@pytest.mark.parametrize("value", ["", "x", "x" * 43, "é" * 43, '"', "\x01", "a=b", ";", "x" * 4000])
async def test_a_cookie_may_hold_anything(client: Client, value: str) -> None:
    cookie: Any = b"ximler=" + value.encode("latin-1")
    answer = await client.http.post("/graphql", json=ME, headers={**OURS, "Cookie": cookie})
    assert answer.status_code in (200, 401)
    assert answer.json()["errors"][0]["extensions"]["kind"] == "UNAUTHENTICATED"
