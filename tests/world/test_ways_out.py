"""A refusal is not a dead end: from the first day of a new user,
and from bug reports of systems like this one."""

import pytest
from tests.graphql.fields import FIELDS
from tests.serving import PASSWORD, Client

from ximler.database import Database
from ximler.graphql.context import OPEN


def test_fields_for_everybody_are_those_of_the_matrix() -> None:
    refused = {"UNAUTHENTICATED", "FORBIDDEN"}
    public = {name.partition(".")[2] for name, field in FIELDS.items() if field.anonymous not in refused}
    assert {name for name in OPEN if not name.startswith("__")} == public


async def test_the_token_of_an_ended_session_keeps_nobody_from_signing_in(client: Client, ada: Client) -> None:
    """A client that stored a token sends it with every request, so it could not sign in again."""
    await ada.ask("mutation { signOut }")
    for token in (ada.token, "x" * 43, "nonsense"):
        late = Client(client.app, token=token)
        assert (await late.ask("{ plans { id } }"))["plans"]
        assert (await late.ask('mutation { requestPasswordReset(email: "a@example.com") { accepted } }')).code is None
        again = f'mutation {{ signIn(email: "ada@example.com", password: "{PASSWORD}") {{ token }} }}'
        assert (await late.ask(again)).code is None
        # Everything else says that the session has ended, also beside an open field.
        for query in ("{ me { id } }", "{ plans { id } me { id } }", "{ projects { nodes { id } } }"):
            answer = await Client(client.app, token=token).ask(query)
            assert (answer.status, answer.code) == (401, "SESSION_EXPIRED"), query


PAGES = [
    # the form, what was typed, the status, a sentence for people, the fields of the form that comes again
    ("/confirm", {"token": "x" * 43, "password": PASSWORD}, 422, "If it created your account, sign in", []),
    ("/confirm", {}, 422, "If it created your account, sign in", []),
    ("/reset", {"token": "x" * 43, "password": PASSWORD}, 422, "If it changed your password, sign in", []),
    ("/email", {"token": "x" * 43, "password": PASSWORD}, 422, "If it changed your address, sign in", []),
    ("/reset/request", {"email": "nobody"}, 422, "must have an @-sign", ["email"]),
    ("/reset/request", {}, 422, "must have an @-sign", ["email"]),
    ("/confirm", {"token": "x" * 43, "password": "x" * 20_000}, 413, "too long", []),
    ("/reset", {"token": "x" * 43, "password": "計" * 2_000}, 413, "too long", []),
]


@pytest.mark.parametrize(("path", "typed", "status", "sentence", "fields"), PAGES)
async def test_pages_for_people_answer_with_pages_and_without_names_of_fields(
    client: Client, path: str, typed: dict[str, str], status: int, sentence: str, fields: list[str]
) -> None:
    answer = await client.http.post(path, data=typed)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), answer.text
    assert sentence in answer.text
    assert "token:" not in answer.text
    assert "email:" not in answer.text
    for field in fields:
        assert f'name="{field}"' in answer.text


async def test_the_longest_password_of_the_widest_characters_confirms_an_account(
    client: Client, database: Database
) -> None:
    """Limits of body and password agree: in a form, a character takes up to twelve bytes."""
    password = "".join(chr(0x20000 + 7 * n) for n in range(1_000))
    token = await client.register("ada@example.com", password=password)
    done = await client.http.post("/confirm", data={"token": token, "password": password})
    assert (done.status_code, "ada@example.com" in done.text) == (200, True)
    signed_in = await client.http.post(
        "/v1/session",
        json={"email": "ada@example.com", "password": password},
        headers={"Sec-Fetch-Site": "same-origin"},
    )
    assert signed_in.status_code == 200
