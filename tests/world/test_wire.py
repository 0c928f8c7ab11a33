"""What clients, proxies and balancers send over HTTP, from public bug reports of systems like this one.

Each row says where its rule comes from.
"""

import gzip
import json
from typing import Any

import msgspec
import pytest
from tests.accounts.test_avatars import picture
from tests.serving import PASSWORD, Client, serve

from ximler.accounts import roles
from ximler.core import networks
from ximler.core.actor import Actor
from ximler.core.clock import rfc3339
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.http.conditional import matches
from ximler.http.requests import TrustedProxies

OURS = ["10.0.0.0/8", "2001:db8:ffff::/48", "::ffff:172.16.0.0/108"]

FORWARDED_FOR = [
    # Azure Application Gateway and IIS append the port.
    ("203.0.113.7:4711", "203.0.113.7"),
    ("[2001:db8::1]:4711", "2001:db8::1"),
    ("[2001:db8::1]", "2001:db8::1"),
    ("2001:db8::1", "2001:db8::1"),
    ("203.0.113.7, 10.0.0.5:33333", "203.0.113.7"),
    ("203.0.113.7:1, [2001:db8:ffff::5]:33333, 10.0.0.5", "203.0.113.7"),
    # RFC 9110, 5.6.1: empty elements of a list are ignored.
    ("203.0.113.9,,", "203.0.113.9"),
    (",203.0.113.9 ,\t, 10.0.0.2,", "203.0.113.9"),
    ('"203.0.113.7"', "203.0.113.7"),
    ('"[2001:db8::1]:4711"', "2001:db8::1"),
    # A dual-stack proxy writes IPv4 clients as mapped addresses.
    ("::ffff:203.0.113.7", "203.0.113.7"),
    ("[::ffff:203.0.113.7]:80", "203.0.113.7"),
    ("::ffff:cb00:7107", "203.0.113.7"),
    ("203.0.113.7, ::ffff:172.16.3.4", "203.0.113.7"),
    ("203.0.113.7, 172.16.3.4", "203.0.113.7"),
    # Elements before the nearest untrusted hop are the client's own claims.
    ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
    # A malformed element ends the search at the proxy.
    ("203.0.113.7, fe80::1%eth0", "10.0.0.1"),
    ("203.0.113.7, unknown", "10.0.0.1"),
    ("203.0.113.7, 0x7f.1", "10.0.0.1"),
    ("203.0.113.7, 010.0.0.1", "10.0.0.1"),
    ("203.0.113.7, [", "10.0.0.1"),
    ("203.0.113.7, :4711", "10.0.0.1"),
    ("203.0.113.7, [198.51.100.7", "10.0.0.1"),
    ("203.0.113.7, 198.51.100.7]", "10.0.0.1"),
    ("203.0.113.7, 198.51.100.7:http", "10.0.0.1"),
]


@pytest.mark.parametrize(("header", "client"), FORWARDED_FOR)
def test_the_client_behind_proxies_is_found_however_they_write_it(header: str, client: str) -> None:
    proxies = TrustedProxies(OURS)
    assert proxies.client("10.0.0.1", header) == client
    assert proxies.client("::ffff:10.0.0.1", header) == client
    assert proxies.client("192.0.2.9", header) == "192.0.2.9"  # is no proxy of ours


@pytest.mark.parametrize(
    ("header", "client"),
    [  # RFC 7239, 4 and 6
        ("for=203.0.113.7", "203.0.113.7"),
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=203.0.113.7;proto=http;by=203.0.113.43", "203.0.113.7"),
        ('by=203.0.113.43;proto=https; FOR = "203.0.113.7:47011"', "203.0.113.7"),
        ("for=6.6.6.6, for=203.0.113.7, for=10.0.0.9", "203.0.113.7"),
        ("for=203.0.113.7, for=unknown", "10.0.0.1"),
        ("for=203.0.113.7, for=_hidden", "10.0.0.1"),
        ("for=203.0.113.7, proto=https", "10.0.0.1"),
        ('for="203.0.\\113.7:_port"', "203.0.113.7"),
        ("for=203.0.113.7;for=198.51.100.7", "10.0.0.1"),
        # The proxy repeats the client's Host in quotes, and the client's own element may be anything.
        ('for=203.0.113.7;host="x, for=6.6.6.6"', "203.0.113.7"),
        ('host="x;for=6.6.6.6";for="203.0.113.7"', "203.0.113.7"),
        (r'for=203.0.113.7;host="x\", for=6.6.6.6, \""', "203.0.113.7"),
        ('for="6.6.6.6, for=203.0.113.7', "203.0.113.7"),
        ('for=6.6.6.6;by=", for=203.0.113.7;by="_b"', "203.0.113.7"),
        (r'for=6.6.6.6;by="\, for="203.0.113.7"', "203.0.113.7"),
    ],
)
def test_the_standard_header_is_read_where_the_usual_one_is_missing(header: str, client: str) -> None:
    proxies = TrustedProxies(OURS)
    assert proxies.client("10.0.0.1", "", header) == client
    assert proxies.client("10.0.0.1", "198.51.100.1", header) == "198.51.100.1"
    assert proxies.client("192.0.2.9", "", header) == "192.0.2.9"


def test_an_ipv4_address_is_one_address_however_it_comes() -> None:
    within = [networks.parse_network("192.0.2.0/24")]
    mapped = [networks.parse_network("::ffff:192.0.2.0/120")]
    assert within == mapped
    for written in ("192.0.2.7", "::ffff:192.0.2.7", "::FFFF:c000:207", "0:0:0:0:0:ffff:192.0.2.7"):
        assert networks.contains(within, written)
        assert networks.subscriber(written) == "192.0.2.7"
        assert TrustedProxies([]).client(written) == "192.0.2.7"
    for written in ("192.0.2.7%eth0", "192.0.2.7:80", "", None, "192.0.2"):
        assert not networks.contains(within, written)
    with pytest.raises(ValueError, match="zone"):
        networks.parse_network("fe80::1%eth0")


@pytest.mark.slow
async def test_a_key_bound_to_an_address_works_for_it_behind_a_proxy_that_adds_ports(
    settings: Settings, ada: Client, database: Database, mongodb_uri: str
) -> None:
    made = await ada.ask(
        """mutation { createApiKey(input: {name: "k", permissions: ["account:read"], allowedAddresses: ["203.0.113.7"]})
           { secret } }"""
    )
    secret = made["createApiKey"]["secret"]
    behind = msgspec.structs.replace(settings, database=database.name, trusted_proxies=("192.0.2.0/24",))
    async with serve(behind, mongodb_uri) as app:
        client = Client(app, token=secret)
        for header, works in [
            ({"X-Forwarded-For": "203.0.113.7:4711"}, True),
            ({"X-Forwarded-For": "203.0.113.7,,"}, True),
            ({"Forwarded": 'for="203.0.113.7:1"'}, True),
            ({"X-Forwarded-For": "203.0.113.8:4711"}, False),
        ]:
            headers = {"Authorization": f"Bearer {secret}", **header}
            answer = client.read(await client.http.post("/graphql", json={"query": "{ me { id } }"}, headers=headers))
            assert (answer.code == "ADDRESS_NOT_ALLOWED") is not works, header


NOT_UTF8 = [
    b"\xff",
    b"\xc3",  # truncated
    b"\xc0\xaf",  # overlong
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",  # a surrogate
    b"\xf5\x80\x80\x80",  # beyond Unicode
    b"caf\xe9",  # Latin-1
]
JSON_BODIES = [
    b'{"email":"%b","password":"x"}',
    b'{"email":"a@b.c","password":"%b"}',
    b'{"%b":1}',
    b'{"email":{"a":["%b"]}}',
    b"%b{}",
]


@pytest.mark.parametrize("wrong", NOT_UTF8)
@pytest.mark.parametrize("path", ["/v1/session", "/graphql"])
async def test_bytes_that_are_not_utf_8_are_a_bad_request_wherever_they_stand(
    client: Client, path: str, wrong: bytes
) -> None:
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    for body in JSON_BODIES:
        response = await client.http.post(path, content=body % wrong, headers=headers)
        assert response.status_code == 400, (body % wrong, response.text)
        problem = response.json()
        code = problem["errors"][0]["extensions"]["code"] if path == "/graphql" else problem["code"]
        assert code == "BAD_REQUEST"


@pytest.mark.parametrize("path", ["/v1/session", "/graphql"])
async def test_json_that_decoders_read_differently_is_a_bad_request(client: Client, path: str) -> None:
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    for body, why in [
        (b'{"email":"a@b.c","email":"b@b.c","password":"x"}', "twice"),
        (b'{"email":"a@b.c","\\u0065mail":"b@b.c","password":"x"}', "twice"),
        (b'{"email":"a@b.c","password":"x","more":{"n":NaN}}', "NaN"),
        (b'{"email":"a@b.c","password":"x","more":1e400}', "beyond the range"),
        (b'{"email":"a@b.c","password":"\\ud800"}', "surrogate"),
    ]:
        response = await client.http.post(path, content=body, headers=headers)
        assert response.status_code == 400, (body, response.text)
        assert why in response.text, (body, response.text)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", NOT_UTF8)
async def test_forms_that_are_not_utf_8_are_no_fault_of_the_server(ada: Client, wrong: bytes) -> None:
    percent = "".join(f"%{byte:02x}" for byte in wrong).encode()
    for body in (b"token=" + wrong, b"token=" + percent, wrong + b"=1"):
        response = await ada.http.post(
            "/confirm", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert 400 <= response.status_code < 500
    for part in (
        b'Content-Disposition: form-data; name="%b"; filename="x"\r\n\r\nx',
        b'Content-Disposition: form-data; name="x"; filename="%b"\r\n\r\nx',
        b'Content-Disposition: form-data; name="x"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%b',
        b'Content-Disposition: form-data; name="x"\r\nContent-Type: text/plain; charset=klingon\r\n\r\n%b',
        b"Content-Disposition: form-data; name=\"x\"; filename*=klingon''%b\r\n\r\nx",
        b'Content-Disposition: form-data; name="_charset_"\r\n\r\n%b',
    ):
        body = b"--b\r\n" + part % wrong + b"\r\n--b--\r\n"
        response = await ada.http.put(
            "/v1/avatar",
            content=body,
            headers={"Content-Type": "multipart/form-data; boundary=b", "Authorization": f"Bearer {ada.token}"},
        )
        assert 400 <= response.status_code < 500, (part % wrong, response.text)


SIGN_IN = {"email": "ada@example.com", "password": PASSWORD}
JSON = "application/json"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Encoding": "gzip"}, gzip.compress(json.dumps(SIGN_IN).encode(), mtime=0), 415),
        ({"Content-Encoding": "br"}, b"x", 415),
        ({"Content-Encoding": "gzip, identity"}, b"x", 415),
        ({"Content-Encoding": "identity"}, json.dumps(SIGN_IN).encode(), 200),
        ({"Content-Type": f"{JSON}; charset=UTF-16"}, json.dumps(SIGN_IN).encode("utf-16"), 415),
        ({"Content-Type": f"{JSON}; charset=latin1"}, json.dumps(SIGN_IN).encode("latin1"), 415),
        ({"Content-Type": f"{JSON}; charset=klingon"}, json.dumps(SIGN_IN).encode(), 415),
        ({"Content-Type": f'{JSON}; charset="UTF-8"'}, json.dumps(SIGN_IN).encode(), 200),
        ({"Content-Type": f"{JSON}; charset=us-ascii"}, json.dumps(SIGN_IN).encode(), 200),
        ({}, b"\xef\xbb\xbf" + json.dumps(SIGN_IN).encode(), 200),  # RFC 8259, 8.1: a parser may ignore it
        ({}, b"[" * 4_000, 400),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_encodings_of_rest_bodies(client: Client, headers: dict[str, str], body: bytes, status: int) -> None:
    headers = {"Content-Type": JSON, "Sec-Fetch-Site": "same-origin", **headers}
    response = await client.http.post("/v1/session", content=body, headers=headers)
    assert response.status_code == status, response.text
    if status == 415 and "Content-Encoding" in headers:
        assert response.headers["accept-encoding"] == "identity"  # RFC 9110, 12.5.3
        assert response.json()["code"] == "UNSUPPORTED_MEDIA_TYPE"


@pytest.mark.parametrize(
    ("kind", "more", "body", "status"),
    [
        ("application/x-ndjson", {"Content-Encoding": "gzip"}, gzip.compress(b"%b\n", mtime=0), 415),
        (JSON, {"Content-Encoding": "gzip"}, gzip.compress(b"[%b]", mtime=0), 415),
        ("application/x-ndjson; charset=UTF-16", {}, "{}\n".encode("utf-16"), 415),
        (f"{JSON}; charset=UTF-16", {}, "[{}]".encode("utf-16"), 415),
        (JSON, {}, b'[%b, {"id": "\xff"}]', 400),
        (JSON, {}, b'[%b, {"\xc0\x80": 1}]', 400),
        # PowerShell's Out-File and Excel begin files with a byte order mark; joined files have several.
        (JSON, {}, b"\xef\xbb\xbf[%b]", 200),
        ("application/x-ndjson", {}, b"\xef\xbb\xbf%b\n", 200),
        ("application/x-ndjson", {}, b"\n\xef\xbb\xbf%b\r\n\xef\xbb\xbf", 200),
    ],
)
async def test_a_report_of_usage_is_read_or_refused_whole(
    ada: Client, database: Database, kind: str, more: dict[str, str], body: bytes, status: int
) -> None:
    me = await database.raw["users"].find_one({"email": "ada@example.com"})
    assert me is not None
    # The application has not read Ada's status yet: it learns of another process's change only from its feed.
    await roles.grant(database, Actor(kind="operator", via="cli"), me["_id"], "operator")
    event = {"id": "1", "at": rfc3339(database.clock.now()), "userId": str(me["_id"])}
    response = await ada.http.post(
        "/v1/usage/events",
        content=body.replace(b"%b", json.dumps(event).encode()),
        headers={"Authorization": f"Bearer {ada.token}", "Content-Type": kind, **more},
    )
    assert response.status_code == status, response.text
    if status == 200:
        assert (response.json()["accepted"], response.json()["refused"]) == (1, [])


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/session", "`email` and `password`"),
        ("/v1/projects/{project}/shares/revoke", "`email`"),
        ("/v1/projects/{project}/links", "`expiresAt`"),
        ("/v1/projects/{project}/versions", "`name` or `pinned`"),
        ("/v1/usage/events", "array of events"),
        ("/graphql", '{"query": "…"}'),
    ],
)
async def test_a_body_that_is_missing_or_no_json_is_refused_with_what_to_send(
    ada: Client, database: Database, path: str, named: str
) -> None:
    me = await database.raw["users"].find_one({"email": "ada@example.com"})
    assert me is not None
    await roles.grant(database, Actor(kind="operator", via="cli"), me["_id"], "operator")
    path = path.format(project=(await ada.create())["createProject"]["id"])
    headers = {"Authorization": f"Bearer {ada.token}"} if path != "/v1/session" else {"Sec-Fetch-Site": "same-origin"}
    for body in (b"", b" \r\n", b"null", b"5"):
        response = await ada.http.post(path, content=body, headers={**headers, "Content-Type": JSON})
        detail = response.json().get("detail") or response.json()["errors"][0]["message"]
        assert (response.status_code in (400, 422), named in detail) == (True, True), (body, response.text)
    if path != "/v1/usage/events":
        form = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        response = await ada.http.post(path, content=b"email=ada", headers=form)
        assert (response.status_code, JSON in response.text) == (415, True), response.text


@pytest.mark.parametrize("kind", [JSON, "application/json-patch+json", "application/vnd.ximler.records+json"])
async def test_a_canvas_in_another_charset_is_refused(ada: Client, kind: str) -> None:
    project = (await ada.create())["createProject"]["id"]
    headers = {"Authorization": f"Bearer {ada.token}", "Content-Type": f"{kind}; charset=UTF-16"}
    response = await ada.http.request(
        "PUT" if kind == JSON else "PATCH", f"/v1/projects/{project}/canvas?base=0", content=b"{}", headers=headers
    )
    assert (response.status_code, response.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_byte_order_mark_and_null_variables_are_ignored(client: Client) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"query": "{ plans { id } }"}).encode()
    response = await client.http.post("/graphql", content=body, headers={"Content-Type": JSON})
    assert response.json()["data"]["plans"]
    for more in (
        "variables=null",
        "extensions=null",
        "variables=null&extensions=null",
        "variables=",
        "variables=%EF%BB%BF{}",
    ):
        response = await client.http.get(f"/graphql?query={{plans{{id}}}}&{more}")
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", ["Host", "Idempotency-Key", "Authorization", "Content-Length", "Content-Type"])
@pytest.mark.parametrize("path", ["/graphql", "/v1/session", "/nothing"])
async def test_a_header_of_one_value_is_refused_when_given_twice(client: Client, name: str, path: str) -> None:
    """RFC 9110, 5.3: two proxies that each take another of the two see two different requests."""
    scope = _scope(path, [("host", "x"), (name, "1"), (name, "2")] if name != "Host" else [(name, "1"), (name, "2")])
    status, headers, body = await _call(client, scope)
    assert (status, json.loads(body)["code"]) == (400, "BAD_REQUEST")
    assert name in json.loads(body)["detail"]
    assert dict(headers)[b"connection"] == b"close"


async def test_a_request_without_a_host_is_refused_unless_it_is_http_1_0(client: Client) -> None:
    """RFC 9112, 3.2."""
    status, _, body = await _call(client, _scope("/healthz", []))
    assert (status, json.loads(body)["code"]) == (400, "BAD_REQUEST")
    status, _, _ = await _call(client, {**_scope("/healthz", []), "http_version": "1.0"})
    assert status == 200


@pytest.mark.slow
@pytest.mark.parametrize("host", ["a:b", "a:99999", "a:-1", "[::1", "::1", "a b", "a/b", "a@b", "é", "a,b", "", ":80"])
async def test_a_malformed_host_is_refused(ada: Client, host: str) -> None:
    """It was an internal error where the request's URL was read: in the refusal of a scope."""
    for path in ("/healthz", "/v1/export", "/graphql"):
        status, _, body = await _call(ada, _scope(path, [("host", host)]))
        assert (status, json.loads(body)["code"]) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    "host", ["a", "a.example:80", "127.0.0.1:8000", "[::1]", "[2001:db8::1]:443", "a_b.test", "a:"]
)
async def test_a_host_is_a_name_or_an_address(client: Client, host: str) -> None:
    assert (await _call(client, _scope("/healthz", [("host", host)])))[0] == 200


def _scope(path: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("192.0.2.1", 5),
        "server": ("x", 80),
    }


async def _call(client: Client, scope: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await client.app(scope, receive, send)  # type: ignore[arg-type]  # a plain dictionary
    return sent[0]["status"], sent[0]["headers"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ('"a"', True),
        ('W/"a"', True),  # RFC 9110, 13.1.2: weak comparison
        ("*", True),
        (" * ", True),
        ('"x", "a"', True),
        ('"x" , W/"a",', True),
        ('"x,a", "y"', False),
        ('"b"', False),
        ("a", False),
        ('"A"', False),
        ("", False),
    ],
)
def test_conditions_are_compared_as_the_standard_says(header: str, known: bool) -> None:
    assert matches(header, '"a"') is known
    assert matches(header, 'W/"a"') is known


async def test_every_answer_with_an_entity_tag_is_not_sent_again(ada: Client) -> None:
    put = await ada.http.put("/v1/avatar", content=picture(), headers={"Authorization": f"Bearer {ada.token}"})
    for path in (put.json()["avatar"], "/docs/assets/swagger-ui.css"):
        first = await ada.http.get(path)
        tag = first.headers["etag"]
        for condition in (tag, f'"x", W/{tag.removeprefix("W/")}', "*"):
            again = await ada.http.get(path, headers={"If-None-Match": condition})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert "content-length" not in again.headers
        assert (await ada.http.get(path, headers={"If-None-Match": '"x"'})).content == first.content


@pytest.mark.slow
async def test_asking_for_the_head_of_an_export_exports_nothing(ada: Client, database: Database) -> None:
    headers = {"Authorization": f"Bearer {ada.token}"}
    response = await ada.http.head("/v1/export", headers=headers)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"].startswith("attachment")
    assert "content-length" not in response.headers  # RFC 9110, 8.6: only the length of GET's answer, which is unknown
    assert await database.raw.auditlogs.count_documents({"action": "privacy.data.exported"}) == 0
    assert (await ada.http.get("/v1/export", headers=headers)).content
    assert await database.raw.auditlogs.count_documents({"action": "privacy.data.exported"}) == 1
    assert (await ada.http.head("/v1/export")).status_code == 401
    subscription = "/graphql?query=subscription{usageChanged{resource}}"
    response = await ada.http.head(subscription, headers={**headers, "Accept": "text/event-stream"})
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
