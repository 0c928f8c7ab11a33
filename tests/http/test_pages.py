"""The pages that links in e-mails lead to:
they ask before they act, and show nothing that a link smuggled in."""

from html.parser import HTMLParser

import msgspec
import pytest
from tests.serving import PASSWORD, Client

from ximler.database import Database

ATTACKS = [
    "<script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "' autofocus onfocus='alert(1)",
    "</title><script>alert(1)</script>",
    "&#39;><b>",
    "javascript:alert(1)",
    "{{7*7}}",
    "\0<b>",
    "\u202e<b>",
]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", ["/confirm", "/reset", "/email"])
async def test_a_forged_link_gets_a_page_without_its_token(client: Client, path: str) -> None:
    for token in [*ATTACKS, "x" * 200]:
        response = await client.http.get(path, params={"token": token})
        assert (response.status_code, "This link was used already" in response.text) == (422, True)
        page = Page(response.text)
        assert not {tag for tag, _ in page.found} & {"script", "img", "svg", "form", "input", "b"}
        assert token not in response.text


async def test_opening_the_link_does_not_use_it_and_the_button_works_once(client: Client, database: Database) -> None:
    token = await client.register("ada@example.com")
    before = await database.raw["registrations"].find({}).to_list()
    for _ in range(3):
        assert (await client.http.get("/confirm", params={"token": token})).status_code == 200
        await client.http.head("/confirm", params={"token": token})
    assert await database.raw["registrations"].find({}).to_list() == before
    assert await database.raw["users"].count_documents({}) == 0
    done = await client.http.post("/confirm", data={"token": token, "password": PASSWORD})
    assert (done.status_code, "ada@example.com" in done.text) == (200, True)
    assert not (await client.sign_in("ada@example.com")).errors
    again = await client.http.post("/confirm", data={"token": token, "password": PASSWORD})
    assert (again.status_code, "was used" in again.text) == (422, True)
    opened = await client.http.get("/confirm", params={"token": token})
    assert (opened.status_code, "was used" in opened.text, "<form" in opened.text) == (422, True, False)


async def test_a_mistyped_password_gets_the_form_again_with_the_error_beside_the_field(client: Client) -> None:
    token = await client.register("ada@example.com")
    wrong = await client.http.post("/confirm", data={"token": token, "password": "something else"})
    assert (wrong.status_code, "That is not the password you registered with. Try again." in wrong.text) == (422, True)
    fields = [attributes for tag, attributes in Page(wrong.text).found if tag == "input"]
    assert [(field["name"], field.get("aria-invalid")) for field in fields] == [("token", None), ("password", "true")]
    done = await client.http.post("/confirm", data={"token": fields[0]["value"], "password": PASSWORD})
    assert done.status_code == 200


async def test_mistyped_forms_of_a_reset_come_again_and_its_link_leads_to_another(client: Client) -> None:
    assert (await client.register("ada@example.com")) is not None
    wrong = await client.http.post("/reset/request", data={"email": "ada@"})
    (field,) = [attributes for tag, attributes in Page(wrong.text).found if tag == "input"]
    assert (wrong.status_code, field["value"], field["aria-invalid"]) == (422, "ada@", "true")
    for old in (
        await client.http.get("/reset", params={"token": "x"}),
        await client.http.post("/reset", data={"token": "x", "password": PASSWORD}),
    ):
        assert (old.status_code, '<a href="/reset">Request another link</a>' in old.text) == (422, True)


async def test_a_link_for_an_address_that_has_an_account_by_now_says_so(client: Client) -> None:
    first, second = [await client.register("ada@example.com") for _ in range(2)]
    assert (await client.http.post("/confirm", data={"token": first, "password": PASSWORD})).status_code == 200
    refused = await client.http.post("/confirm", data={"token": second, "password": PASSWORD})
    assert (refused.status_code, "sign in instead" in refused.text) == (409, True)


@pytest.mark.parametrize("query", ["", "?", "?other=x", "?token=" + "x" * 201, "?Token=x"])
async def test_a_link_without_token_is_an_error_page(client: Client, query: str) -> None:
    response = await client.http.get(f"/confirm{query}")
    assert (response.status_code, "not complete" in response.text) == (422, True)


FORMS = [b"", b"token=", b"token=x", b"token=x&token=y", b"other=1", b"token[$gt]=", b"token=%00", b"token=%ff", b"\xff\xfe",
         b"token=" + b"x" * 9_000, b"&&&===", b"token=5", b"token=true", b'{"token": "x"}']  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "application/json", "text/plain", "multipart/form-data", ""]
)
async def test_a_forged_form_has_no_effect(client: Client, database: Database, kind: str) -> None:
    for form in FORMS:
        response = await client.http.post("/confirm", content=form, headers={"Content-Type": kind} if kind else {})
        assert response.status_code in (413, 422), form[:80]
        assert response.headers["content-type"].split(";")[0] in ("text/html", "application/problem+json")
    assert await database.raw["users"].count_documents({}) == 0


@pytest.mark.parametrize("path", ["/", "/confirm?token=x"])
async def test_pages_run_no_script_sit_in_no_frame_and_are_not_kept(client: Client, path: str) -> None:
    headers = (await client.http.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"  # the link's token stays with us


async def test_a_browser_that_opens_graphql_gets_a_page(client: Client) -> None:
    opened = await client.http.get("/graphql", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (opened.status_code, opened.headers["location"]) == (303, "/#graphql")
    assert "curl http://127.0.0.1:8000/graphql" in (await client.http.get("/")).text
    assert (await client.http.get("/favicon.ico")).headers["content-type"].startswith("image/svg+xml")


async def test_the_application_opens_after_a_password_was_reset(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    authentication = client.app._app.state.authentication  # type: ignore[attr-defined]  # the application inside
    monkeypatch.setattr(
        authentication,
        "settings",
        msgspec.structs.replace(authentication.settings, app_url="https://app.example/in?a=1"),
    )
    token = await client.register("ada@example.com")
    done = await client.http.post("/confirm", data={"token": token, "password": PASSWORD})
    assert done.headers["refresh"] == "3;url=https://app.example/in?a=1"
    assert '<a href="https://app.example/in?a=1">Continue</a>' in done.text
