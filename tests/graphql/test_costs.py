"""What the dear fields of the schema leave room for in one request."""

import pytest
from tests.serving import Client

SIGN_IN = 'signIn(email: "a@example.com", password: "a wrong password") { token }'
REGISTER = 'register(input: {name: "A", email: "a@example.com", password: "correct horse battery"}) { accepted }'


@pytest.mark.parametrize(
    ("selection", "passes"),
    [
        ("projects { nodes { name canvasData } }", True),
        ("projects(first: 45) { nodes { canvasData } }", False),
        ("projects(first: 3) { nodes { " + " ".join(f"c{n}: canvasData" for n in range(20)) + " } }", False),
        ("projects { nodes { canvasData settings } }", True),
        ("projects(first: 23) { nodes { canvasData settings } }", False),
        ("me { " + " ".join(f"u{n}: usage {{ used }}" for n in range(30)) + " }", True),
    ],
)
async def test_about_forty_canvases_fit_in_a_request(ada: Client, selection: str, passes: bool) -> None:
    answer = await ada.ask(f"{{ {selection} }}")
    assert answer.code == (None if passes else "QUERY_LIMIT_EXCEEDED")


@pytest.mark.parametrize("field", [SIGN_IN, REGISTER, 'confirmEmail(token: "x", password: "y") { token }'])
async def test_two_password_mutations_fit_in_a_request(client: Client, field: str) -> None:
    two, three = [" ".join(f"a{n}: {field}" for n in range(count)) for count in (2, 3)]
    assert (await client.ask(f"mutation {{ {two} }}")).code != "QUERY_LIMIT_EXCEEDED"
    refused = await client.ask(f"mutation {{ {three} }}")
    assert refused.code == "QUERY_LIMIT_EXCEEDED"
    assert refused.data is None


async def test_a_megabyte_is_enough_without_a_session(client: Client) -> None:
    variables = {"a": "x" * 1_000_000}
    response = await client.http.post("/graphql", json={"query": "{ plans { id } }", "variables": variables})
    assert response.status_code == 413
    assert "anonymous requests" in response.text


async def test_a_canvas_of_two_million_parts_is_refused(ada: Client) -> None:
    answer = await ada.create(canvasData={"a": [[]] * 2_000_000})
    assert answer.code == "BAD_REQUEST"
    assert "250,000" in answer.errors[0]["message"]
