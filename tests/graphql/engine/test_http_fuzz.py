"""Whatever is sent, the answer is well formed and never 500."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
QUERIES = st.sampled_from(
    [
        "{ hello }",
        "query($v: JSON) { echo(value: $v) }",
        "query($v: Int) { users(first: $v) { nodes { id } } }",
        "query($v: String, $first: Int = 3) { hello(name: $v) users(first: $first) { edges { cursor } } }",
        "mutation($v: String!) { append(item: $v) }",
        'query A { hello } query B { user(id: "x") { id } }',
        "{ __schema { types { name } } }",
        "{ hello(name: [1]) }",
    ]
)
TOKENS = st.sampled_from(
    '{ } ( ) [ ] $v : ! ... on query fragment hello users echo value " """ \\u0000 # @skip @include(if:true) 1 -1.5e9 null '
    "true = | & \ufeff".split()
)
REQUESTS = st.fixed_dictionaries(
    {"query": QUERIES | st.lists(TOKENS, max_size=25).map(" ".join) | st.text(max_size=50) | VALUES},
    optional={
        "variables": st.dictionaries(st.sampled_from(["v", "first", "x"]), VALUES) | VALUES,
        "operationName": st.sampled_from(["A", "B", "", None]) | VALUES,
        "extensions": VALUES,
        "other": VALUES,
    },
)
TYPES = st.sampled_from(["application/json", "application/graphql-response+json", "*/*", "application/json; q=x", "a"])


def check(response: Any) -> None:
    assert response.status_code in (200, 400, 405, 406, 413, 415), response.text
    assert response.headers["content-type"].endswith("; charset=utf-8")
    body = json.loads(response.content.decode("utf-8"))
    assert body.keys() <= {"data", "errors"}
    for error in body.get("errors", ()):
        assert error["message"]
        assert error["extensions"]["code"] not in ("", "INTERNAL"), error
    if response.status_code != 200:
        assert "data" not in body


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(REQUESTS.map(dump), TYPES)
@example(
    b'{"query": "query($v: JSON) { echo(value: $v) }", "variables": {"v": ' + b"[" * 900 + b"]" * 900 + b"}}", "*/*"
)
@example(
    b'{"query": "query($v: Int) { users(first: $v) {nodes{id}} }", "variables": {"v": '
    + b"[" * 400
    + b"]" * 400
    + b"}}",
    "*/*",
)
async def test_requests_of_any_kind(serve: Any, body: bytes, accept: str) -> None:
    headers = {"content-type": "application/json", "accept": accept}
    check(await serve().post("/", content=body, headers=headers))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.booleans())
async def test_bodies_of_any_kind(serve: Any, body: bytes, json_type: bool) -> None:
    headers = {"content-type": "application/json"} if json_type else {}
    check(await serve().post("/", content=body, headers=headers))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["query", "variables", "operationName", "extensions"]), QUERIES | st.text(max_size=30)
    )
)
async def test_query_strings_of_any_kind(serve: Any, parameters: dict[str, str]) -> None:
    check(await serve().get("/", params=parameters))
