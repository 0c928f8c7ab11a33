import json
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from ximler.core.errors import Forbidden, LimitExceeded, Unauthenticated, Unavailable
from ximler.graphql.engine import Engine, GraphQLApp, Resolvers, build

NEW = "application/graphql-response+json"
OLD = "application/json"
HELLO = {"query": "{ hello }"}


def media_type(response: httpx.Response) -> str:
    media_type, charset = response.headers["content-type"].split("; ")
    assert charset == "charset=utf-8"
    return str(media_type)


def problem(response: httpx.Response) -> str:
    body = response.json()
    assert body.keys() == {"errors"}
    [error] = body["errors"]
    assert error["extensions"]["code"]
    return str(error["message"])


async def post(client: httpx.AsyncClient, body: bytes | str, **headers: str) -> httpx.Response:
    named = {"content-type": OLD, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await client.post("/", content=body, headers=named)


async def test_a_query_by_post(serve: Any) -> None:
    response = await serve().post("/", json={"query": '{ hello(name: "Åsa 🏊") }', "unknown": [1]})
    assert response.status_code == 200
    assert media_type(response) == OLD
    assert response.json() == {"data": {"hello": "Hello Åsa 🏊"}}
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["vary"] == "accept"


async def test_a_query_by_get(serve: Any) -> None:
    query = "query A { a: hello } query B($name: String) { b: hello(name: $name) }"
    parameters = {"query": query, "operationName": "B", "variables": '{"name": "Åsa & co"}', "extensions": "{}"}
    response = await serve().get("/", params=parameters)
    assert response.json() == {"data": {"b": "Hello Åsa & co"}}
    empty = {"query": "{ hello }", "operationName": "", "variables": "", "extensions": ""}
    assert (await serve().get("/", params=empty)).json() == {"data": {"hello": "Hello you"}}


async def test_null_and_empty_parameters_count_as_absent(serve: Any) -> None:
    for absent in (None, ""):
        body = {**HELLO, "operationName": absent, "variables": None, "extensions": None}
        assert (await serve().post("/", json=body)).json() == {"data": {"hello": "Hello you"}}


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        (None, OLD),
        ("", OLD),
        ("*/*", OLD),
        ("application/*", OLD),
        (OLD, OLD),
        (NEW, NEW),
        (f"{NEW}, {OLD}", NEW),
        (f"{OLD}, {NEW}", NEW),
        (f"{OLD}, {NEW};q=0.9", OLD),
        (f"{NEW};q=0.5, */*;q=0.1", NEW),
        (f"{NEW};q=0, */*", OLD),
        (f"{OLD};q=0, */*", NEW),
        ("text/html, application/xhtml+xml, */*;q=0.8", OLD),
        (f"{NEW}; charset=UTF-8", NEW),
        (NEW.upper(), NEW),
        (f"{NEW};q=banana, {OLD}", OLD),
    ],
)
async def test_the_answers_media_type_is_negotiated(serve: Any, accept: str | None, answer: str) -> None:
    client = serve()
    request = client.build_request("POST", "/", json=HELLO)
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    response = await client.send(request)
    assert response.status_code == 200
    assert media_type(response) == answer


async def test_an_overlong_header_is_not_parsed(serve: Any) -> None:
    """Megabytes of commas would keep every other request waiting for seconds."""
    client = serve()
    long = "application/json" + "," * 2_000_000
    started = time.process_time()
    for more, status in (({"accept": long}, 406), ({"content-type": long.replace(",", ";")}, 415)):
        headers = {"content-type": "application/json", **more}
        response = await client.post("/", content=b'{"query": "{ hello }"}', headers=headers)
        assert response.status_code == status
    assert time.process_time() - started < 1
    accept = "application/json" + "," * 1_000
    response = await client.post("/", json={"query": "{ hello }"}, headers={"accept": accept})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0.5", f"{OLD};q=0", f"{NEW}; charset=utf-16", "json", ";;,"]
)
async def test_a_type_that_we_do_not_speak_is_406(serve: Any, accept: str) -> None:
    response = await serve().post("/", json=HELLO, headers={"accept": accept})
    assert response.status_code == 406
    assert NEW in problem(response)


@pytest.mark.parametrize(
    ("query", "variables"),
    [
        ("{ hello", {}),
        ("{ nope }", {}),
        ("query($n: Int!) { users(first: $n) { nodes { id } } }", {}),
        ("{hello}" * 9, {}),
    ],
)
async def test_a_request_that_cannot_run_is_400_in_the_new_type_and_200_in_the_old(
    serve: Any, query: str, variables: dict[str, Any]
) -> None:
    for accept, status in ((NEW, 400), (OLD, 200)):
        response = await serve().post("/", json={"query": query, "variables": variables}, headers={"accept": accept})
        assert response.status_code == status
        assert media_type(response) == accept
        assert "data" not in response.json()


async def test_errors_of_fields_are_200_in_both(serve: Any) -> None:
    for accept in (NEW, OLD):
        body = {"query": '{ hello user(id: "1") { id } }'}
        response = await serve().post("/", json=body, headers={"accept": accept})
        assert response.status_code == 200
        assert response.json()["data"] == {"hello": "Hello you", "user": None}
        assert list(response.json()) == ["errors", "data"]


async def test_mutations_need_post(serve: Any) -> None:
    mutation = 'mutation { append(item: "x") }'
    assert (await serve().post("/", json={"query": mutation})).json() == {"data": {"append": ["x"]}}
    for accept in (NEW, OLD):
        response = await serve().get("/", params={"query": mutation}, headers={"accept": accept})
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert problem(response) == "Mutations need POST"
    chosen = {"query": f"query A {{ hello }} {mutation.replace('{', 'B {', 1)}", "operationName": "A"}
    assert (await serve().get("/", params=chosen)).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"])
async def test_other_methods_are_405(serve: Any, method: str) -> None:
    response = await serve().request(method, "/", params={"query": "{ hello }"})
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"
    assert (response.content == b"") is (method == "HEAD")


@pytest.mark.parametrize(
    "content_type",
    [
        None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json",
        "application/json; charset=utf-16", "application/graphql", "application/jsonp", "text/plain; application/json",
    ],
)  # fmt: skip
async def test_content_types_that_a_browser_sends_unasked_are_415(serve: Any, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await serve().post("/", content=json.dumps(HELLO), headers=headers)
    assert response.status_code == 415
    assert "application/json" in problem(response)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", 'application/json;charset="UTF-8"', "Application/JSON ; a=b"]
)
async def test_json_in_utf_8_is_accepted_however_it_is_written(serve: Any, content_type: str) -> None:
    assert (await post(serve(), json.dumps(HELLO), content_type=content_type)).status_code == 200


async def test_compressed_bodies_are_415(serve: Any) -> None:
    assert (await post(serve(), b"\x1f\x8b", content_encoding="gzip")).status_code == 415
    assert (await post(serve(), json.dumps(HELLO), content_encoding="identity")).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no body"),
        (b"  ", "has no body"),
        (b'{ "not a JSON', "not JSON"),
        (b'{"query": "{ hello }"} trailing', "not JSON"),
        (b'{"query": "\xff"}', "not UTF-8"),
        (b'{"query": "{ hello }", "\xff": 1}', "not UTF-8"),
        (b'{"query": "{ hello }", "variables": {"a": "\xed\xa0\x80"}}', "not UTF-8"),
        (b'{"query": "\\ud800"}', "/query in the body contains an unpaired surrogate"),
        (b'{"query": NaN}', "/query in the body is NaN"),
        (b'{"query": "{ nope }", "query": "{ hello }"}', "/query in the body is a key that its object has twice"),
        (b'{"query": "{ hello }", "variables": {"a": [{"b:": 1, "b\\u003a": 2}]}}', "/variables/a/0/b: in the body is a key"),
        (b"null", "Expected `object`, got `null`"),
        (b'"text"', "Expected `object`, got `str`"),
        (b'[{"query": "{ hello }"}]', "Batches are not accepted"),
        (b" \n[", "Batches are not accepted"),
        (b"{}", "has no `query`"),
        (b'{"query": null}', "Expected `str`, got `null` - at `$.query`"),
        (b'{"query": ["{ hello }"]}', "`$.query`"),
        (b'{"query": "{ hello }", "variables": []}', "`$.variables`"),
        (b'{"query": "{ hello }", "variables": "{}"}', "`$.variables`"),
        (b'{"query": "{ hello }", "operationName": 0}', "`$.operationName`"),
        (b'{"query": "{ hello }", "extensions": false}', "`$.extensions`"),
        (b'{"query": "{ hello }", "variables": {"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}}", "nested deeper than"),
        (b'{"query": "{ hello }", "variables": {"a": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001 + b"}", "nested deeper than"),
        (b'{"query": "{ hello }", "other": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested deeper than"),
        (b"[" * 1_000_000, "Batches"),
        (b'{"query": "{ hello }", "variables": {"a": 1e999}}', "/variables/a in the body is a number beyond"),
        (b'{"query": "{ hello }", "variables": {"a": ' + b"9" * 5000 + b"}}", "has a number that cannot be read"),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_a_request_is_400_with_the_reason(serve: Any, body: bytes, told: str) -> None:
    for accept in (NEW, OLD):
        response = await post(serve(), body, accept=accept)
        assert response.status_code == 400
        assert media_type(response) == accept
        assert told in problem(response)
        assert len(response.content) < 1000


@pytest.mark.parametrize("parts", [b"[],", b'{"a":0},', b"0,"])
async def test_a_body_of_too_many_values_costs_little_time(serve: Any, parts: bytes) -> None:
    body = b'{"query": "{ hello }", "variables": {"a": [' + parts * (19_000_000 // len(parts)) + b"0]}}"
    began = time.process_time()
    response = await post(serve(), body)
    assert time.process_time() - began < 2
    assert response.status_code == 400
    assert "more" in problem(response)


async def test_nul_is_a_character_in_values_and_an_error_in_the_query(serve: Any) -> None:
    body = {"query": "query($name: String) { hello(name: $name) }", "variables": {"name": "a\0b"}}
    assert (await serve().post("/", json=body)).json() == {"data": {"hello": "Hello a\0b"}}
    response = await serve().post("/", json={"query": "{ hello\0 }"}, headers={"accept": NEW})
    assert response.status_code == 400
    assert "U+0000" in problem(response)


@pytest.mark.parametrize(
    "query_string",
    [
        "", "query=", "other=1", "query=%7B+hello+%7D&variables=%7B", "query=%7B+hello+%7D&variables=[]",
        "query=%7B+hello+%7D&extensions=1", "query=%ff", "query=%7B+hello+%7D&query=%7B+hello+%7D", "&".join("abcdefg" * 99),
        "query=%7Bhello%7D&variables=" + "[" * 10_000,
    ],
)  # fmt: skip
async def test_a_query_string_that_is_no_request_is_400(serve: Any, query_string: str) -> None:
    response = await serve().get(f"/?{query_string}")
    assert response.status_code == 400
    assert problem(response)


async def test_anonymous_callers_have_a_smaller_body_limit(serve: Any) -> None:
    client = serve(body_limit=10_000, anonymous_body_limit=1_000)
    body = {"query": "{ hello }", "variables": {"a": "x" * 2_000}}
    refused = await client.post("/", json=body)
    assert refused.status_code == 413
    assert "1,000 bytes, the limit of anonymous requests" in refused.text
    assert (await client.post("/", json=body, headers={"authorization": "Bearer x"})).status_code == 200
    body["variables"] = {"a": "x" * 20_000}
    assert (await client.post("/", json=body, headers={"authorization": "Bearer x"})).status_code == 413


async def test_an_authorization_header_alone_does_not_authenticate(serve: Any) -> None:
    made = []

    async def context(scope: Any) -> Any:
        made.append(dict(scope["headers"]).get(b"authorization"))
        if made[-1] == b"Bearer wrong":
            raise Unauthenticated("Nobody")
        return SimpleNamespace(known=made[-1] is not None)

    client = serve(context, body_limit=10_000, anonymous_body_limit=1_000, is_known=lambda ctx: ctx.known)
    body = json.dumps({**HELLO, "variables": {"a": "x" * 2_000}})

    async def chunks() -> Any:
        for start in range(0, len(body), 500):
            yield body[start : start + 500].encode()

    for content in (body, chunks):
        for headers, status in (
            ({"cookie": "a=b"}, 413),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": "Bearer right"}, 200),
        ):
            sent = content if isinstance(content, str) else content()
            response = await client.post("/", content=sent, headers={"content-type": OLD, **headers})
            assert response.status_code == status, (headers, response.text)
    assert made == [None, b"Bearer wrong", b"Bearer right", b"Bearer right"] * 2


async def test_a_body_past_the_limit_is_413(serve: Any) -> None:
    client = serve(body_limit=1000)
    body = json.dumps({**HELLO, "variables": {"x": "y" * 1000}})
    assert (await post(client, body)).status_code == 413

    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 100

    response = await client.post("/", content=chunks(), headers={"content-type": OLD})
    assert response.status_code == 413
    assert "1,000 bytes" in problem(response)
    exactly = json.dumps(HELLO).ljust(1000)
    assert (await post(client, exactly)).status_code == 200


# --- the context
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (Unauthenticated("The token has expired."), 401, ("www-authenticate", "Bearer")),
        (Forbidden("Not you."), 403, None),
        (LimitExceeded("Slow down.", retry_after_s=2.5), 429, ("retry-after", "3")),
        (Unavailable("The database is away."), 503, None),
    ],
)
async def test_a_context_that_refuses_is_the_answer(
    serve: Any, error: Any, status: int, header: tuple[str, str] | None
) -> None:
    async def refuse(scope: Any) -> Any:
        raise error

    for accept in (NEW, OLD):
        response = await serve(refuse).post("/", json=HELLO, headers={"accept": accept})
        assert response.status_code == status
        assert problem(response) == error.message
        assert response.json()["errors"][0]["extensions"]["code"] == error.code
        if header:
            assert response.headers[header[0]] == header[1]


async def test_a_bug_in_the_context_is_500_without_its_text(serve: Any) -> None:
    async def fail(scope: Any) -> Any:
        raise RuntimeError("the password is hunter2")

    with capture_logs() as logs, structlog.contextvars.bound_contextvars(request_id="req-7"):
        response = await serve(fail).post("/", json=HELLO)
    assert response.status_code == 500
    assert problem(response) == "Internal server error"
    assert response.json()["errors"][0]["extensions"] == {"code": "INTERNAL", "requestId": "req-7"}
    assert "hunter2" in str(logs[0]["exc_info"])
    assert logs[0]["request_id"] == "req-7"


async def test_the_context_is_built_only_for_operations_that_will_run(serve: Any, lab: Any) -> None:
    seen = []

    async def make_context(scope: Any) -> Any:
        seen.append(scope["path"])
        return lab.Context()

    client = serve(make_context)
    for body in ({"query": "{ nope }"}, {"query": "{"}, {}):
        await client.post("/graphql", json=body)
    await client.get("/graphql", params={"query": 'mutation { append(item: "x") }'})
    assert seen == []
    await client.post("/graphql", json=HELLO)
    assert seen == ["/graphql"]


# --- odd answers
# --------------------------------------------------------------------------------------------------


async def test_a_value_that_is_no_json_is_500_and_logged(lab: Any, serve: Any) -> None:
    circle: list[Any] = []
    circle.append(circle)

    class Int64(int): ...

    class Oid:
        def __str__(self) -> str:
            return "65b0"

    answers = {"circle": circle, "surrogate": "\ud800", "driver": {"n": Int64(5), "id": Oid(), "b": b"x"}}
    resolvers = Resolvers()

    @resolvers.query("out")
    async def out(ctx: Any, what: str) -> Any:
        return answers[what]

    client = serve(engine=Engine(build(["extend type Query { out(what: String!): JSON }"], [resolvers])))
    for what in ("circle", "surrogate"):
        with capture_logs() as logs:
            response = await client.post("/", json={"query": f'{{ out(what: "{what}") }}'})
        assert response.status_code == 500
        assert problem(response) == "Internal server error"
        assert len(logs) == 1
    response = await client.post("/", json={"query": '{ out(what: "driver") }'})
    assert response.json() == {"data": {"out": {"n": 5, "id": "65b0", "b": "eA=="}}}


# --- ASGI
# ---------------------------------------------------------------------------------------------------------


def scope(**other: Any) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers, **other}


async def test_a_client_that_leaves_within_its_body_gets_no_answer(engine: Any) -> None:
    messages = [{"type": "http.request", "body": b'{"query"', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []
    called: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def make_context(scope: Any) -> None:
        called.append(scope)

    await GraphQLApp(engine, make_context)(scope(), receive, send)
    assert sent == called == messages == []


async def test_other_protocols_are_not_served(engine: Any) -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError

    for kind in ("websocket", "lifespan"):
        with pytest.raises(NotImplementedError, match=kind):
            await GraphQLApp(engine, never)(scope(type=kind), never, never)


# --- a real server
# ------------------------------------------------------------------------------------------------


async def test_over_a_real_connection(server_url: str) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.post(server_url, json=HELLO)
        assert response.json() == {"data": {"hello": "Hello you"}}
        # The answer to a body that is too long arrives although the body was not read, and the connection
        # lives on.
        response = await client.post(server_url, content=b"x" * 8_000_000, headers={"content-type": OLD})
        assert response.status_code == 413
        response = await client.post(server_url, json=HELLO)
        assert response.json() == {"data": {"hello": "Hello you"}}
        response = await client.head(server_url)
        assert (response.status_code, response.content) == (405, b"")
