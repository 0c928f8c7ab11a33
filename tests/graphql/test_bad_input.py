"""Whatever is sent: a clear error that names the field, nothing stored, and never an internal error."""

import base64
import json
from typing import Any

import bson
import httpx
import pytest
from tests.serving import Client

from ximler.core.ids import decode_cursor, encode_cursor
from ximler.database import Database

pytestmark = pytest.mark.slow

CREATE = "mutation ($input: CreateProjectInput!) { createProject(input: $input) { id } }"
UPDATE = "mutation ($id: ID!, $input: UpdateProjectInput!) { updateProject(id: $id, input: $input) { id } }"
REGISTER = "mutation ($input: RegisterInput!) { register(input: $input) { accepted } }"
SIGN_IN = "mutation ($email: String!, $password: String!) { signIn(email: $email, password: $password) { token } }"
CONFIRM = 'mutation ($token: String!) { confirmEmail(token: $token, password: "long enough") { token } }'
LIST = "query ($search: String, $first: Int, $after: String) { projects(search: $search, first: $first, after: $after) { nodes { id } } }"  # noqa: E501 (one line reads best)

DEEP = {"deep": 10_000}  # stands for a document nested that deep, which the json module cannot write


class Attacker:
    """A signed-in client that sends arbitrary input and collects the problems of responses."""

    def __init__(self, client: Client, database: Database, project_id: str) -> None:
        self.client, self.database, self.project_id = client, database, project_id
        self.problems: list[str] = []

    async def send(self, query: str, variables: Any) -> httpx.Response:
        body = json.dumps({"query": query, "variables": variables})
        body = body.replace(json.dumps(DEEP), '{"a":' * 10_000 + "1" + "}" * 10_000)
        headers = {"Authorization": f"Bearer {self.client.token}", "Content-Type": "application/json"}
        return await self.client.http.post("/graphql", content=body.encode(), headers=headers)

    async def expect_refusal(self, field: str, query: str, **variables: Any) -> None:
        """The answer must be an error that names `field`, and the database what it was."""
        before = await self.contents()
        response = await self.send(query, variables)
        what = f"{field} {ascii(variables)[:90]} → {response.status_code} {response.text[:300]}"
        errors = response.json().get("errors")
        if not errors:
            self.problems.append(f"accepted: {what}")
        elif response.status_code not in (200, 400, 413):
            self.problems.append(f"status: {what}")
        elif errors[0]["extensions"]["code"] not in ("INVALID", "BAD_USER_INPUT", "BAD_REQUEST"):
            self.problems.append(f"code: {what}")
        elif field and field not in errors[0]["message"] + str(errors[0]["extensions"].get("fields", "")):
            self.problems.append(f"not named: {what}")
        elif len(response.text) > 2000:
            self.problems.append(f"long: {what}")
        if await self.contents() != before:
            self.problems.append(f"stored: {what}")

    async def expect_answer(self, query: str, **variables: Any) -> Any:
        response = await self.send(query, variables)
        body = response.json()
        if response.status_code != 200 or "errors" in body:
            self.problems.append(f"refused: {ascii(variables)[:90]} → {response.status_code} {response.text[:300]}")
        return body.get("data")

    async def contents(self) -> dict[str, list[bytes]]:
        return {
            name: [bson.encode(d) for d in await self.database.raw[name].find({}).sort("_id").to_list()]
            for name in ("projects", "gauges", "users", "registrations", "sessions")
        }


@pytest.fixture
async def attacker(ada: Client, database: Database) -> Attacker:
    made = await ada.create("before", description="before", canvasData={"a": 1})
    return Attacker(ada, database, made["createProject"]["id"])


async def test_unstorable_settings_and_canvases_are_rejected_by_path(attacker: Attacker) -> None:
    wrong: list[tuple[str, Any]] = [
        ("", {"$set": 1}),
        (".a", {"a": {"$gt": 1}}),
        (".a.1.b", {"a": [0, {"b": {"c.d": 1}}]}),
        ("", {"a.b": 1}),
        ("", {".": 1}),
        ("", {"$": 1}),
        ("", {"a\0b": 1}),
        (".x", {"x": {"\0": 1}}),
        (".n", {"n": 2**64}),
        (".n.0", {"n": [-(2**63) - 1]}),
        ("", {"x": [[[[{"y" * 50_000: {"$z": 1}}]]]]}),
    ]
    for field in ("canvasData", "settings"):
        large = [("", {"x": "y" * 17_000_000})] if field == "settings" else []  # a canvas may be that large
        for path, value in [*wrong, *large]:
            await attacker.expect_refusal(field + path, CREATE, input={"name": "n", field: value})
            await attacker.expect_refusal(field + path, UPDATE, id=attacker.project_id, input={field: value})
        nested: Any = 1
        for _ in range(300):
            nested = {"a": nested}
        await attacker.expect_refusal(field, CREATE, input={"name": "n", field: nested})
        await attacker.expect_refusal("nested deeper than", CREATE, input={"name": "n", field: DEEP})
        await attacker.expect_refusal("longer than", CREATE, input={"name": "n", field: {"x": "y" * 21_000_000}})
    assert attacker.problems == []


async def test_texts_that_cannot_be_stored_are_refused_by_name(attacker: Attacker) -> None:
    for name in ("", " \t\n", "a\0b", "\0", "x" * 201, "é" * 100_000, None, 5, True, ["a"], {"a": 1}, {"$gt": ""}):
        await attacker.expect_refusal("name", CREATE, input={"name": name})
        await attacker.expect_refusal("name", UPDATE, id=attacker.project_id, input={"name": name})
    for description in ("a\0b", "x" * 5001, 5, ["a"], {"$gt": ""}):
        await attacker.expect_refusal("description", CREATE, input={"name": "n", "description": description})
        await attacker.expect_refusal("description", UPDATE, id=attacker.project_id, input={"description": description})
    for unknown in ("userId", "storageSize", "_id", "$set", "deletedAt", "__proto__", "searchTerms"):
        await attacker.expect_refusal(unknown, CREATE, input={"name": "n", unknown: "x"})
        await attacker.expect_refusal(unknown, UPDATE, id=attacker.project_id, input={unknown: "x"})
    await attacker.expect_refusal("name", CREATE, input={})
    await attacker.expect_refusal("input", CREATE, input=None)
    await attacker.expect_refusal("input", CREATE, input=["a"])
    assert attacker.problems == []


async def test_unusual_texts_that_are_texts_come_back_as_they_were_sent(attacker: Attacker, database: Database) -> None:
    no_names = {"\u202eabc", "a\nb", "\ufeffbom"}  # invisible characters and line breaks
    texts = ["x" * 200, "👩‍🚀 Ünïcödé", "مرحبا بالعالم", "\u202eabc", "日本語 プロジェクト", "'; drop table--", "a\nb", "%00",
             "null", "<script>alert(1)</script>", "${7*7}", "{{7*7}}", "\\u0000", "\ufeffbom", "\U0010ffff"]  # fmt: skip
    for text in texts:
        name = "n" if text in no_names else text
        given = {"name": name, "description": text, "canvasData": {text.replace("$", "").replace(".", ""): text}}
        await attacker.expect_answer(UPDATE, id=attacker.project_id, input=given)
        seen = await attacker.expect_answer(
            "query ($id: ID!) { project(id: $id) { name description canvasData } }", id=attacker.project_id
        )
        assert seen["project"] == given
    assert attacker.problems == []


async def test_ids_that_are_not_ids_are_refused_by_name(attacker: Attacker) -> None:
    verbs = [
        "query ($id: ID!) { project(id: $id) { id } }",
        "mutation ($id: ID!) { deleteProject(id: $id) { id } }",
        "mutation ($id: ID!) { restoreProject(id: $id) { id } }",
        "mutation ($id: ID!) { purgeProject(id: $id) }",
        'mutation ($id: ID!) { updateProject(id: $id, input: {name: "n"}) { id } }',
    ]
    right = attacker.project_id
    wrong = ["", "x", right[:-1], right + "0", "g" + right[1:], f" {right}", f"{right}\n", "\0" * 24, "é" * 24, "٣" * 24, True,
             "x" * 100_000, "../../etc/passwd", 5, -1, 2**70, 1.5, None, [right], {"$gt": ""}, {"$oid": right}]  # fmt: skip
    for query in verbs:
        for given in wrong:
            await attacker.expect_refusal("id", query, id=given)
    assert attacker.problems == []


async def test_cursors_that_were_tampered_with_are_refused_by_name(attacker: Attacker) -> None:
    page = await attacker.expect_answer("{ projects { pageInfo { endCursor } } }")
    right = page["projects"]["pageInfo"]["endCursor"]
    raw = base64.urlsafe_b64decode(right)
    wrong = [
        "",
        "x",
        right[:-1],
        right + "A",
        right.swapcase(),
        "A" * 32,
        "=" * 32,
        "\0" * 32,
        "é" * 32,
        "x" * 100_000,
        "null",
    ]
    wrong += [base64.urlsafe_b64encode(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]).decode() for i in range(24)]
    for cursor in [*wrong, 5, ["x"], {"$gt": ""}]:
        await attacker.expect_refusal("after", LIST, after=cursor)
    await attacker.expect_answer(LIST, after=right)
    moment, _ = decode_cursor(right)
    await attacker.expect_answer(LIST, after=encode_cursor((moment, bson.ObjectId())))
    await attacker.expect_answer(LIST, after=encode_cursor((None, bson.ObjectId())))
    assert attacker.problems == []


async def test_invalid_page_sizes_and_searches_are_rejected_by_name(attacker: Attacker) -> None:
    for first in (0, -1, 101, 2**31, 2**70, -(2**70), 1.5, "5", True, [5], {"$gt": 0}):
        await attacker.expect_refusal("first", LIST, first=first)
    for search in ("x" * 201, "x" * 10_000, "a\0b", "\0", 5, True, ["a"], {"$regex": ".*"}):
        await attacker.expect_refusal("search", LIST, search=search)
    for search in (
        ".*",
        "(a+)+$",
        "[",
        "]",
        "(",
        "\\",
        "*",
        "^$",
        "$where",
        "a{1,99999}",
        "(?#",
        "\\Q",
        "'\"",
        "👩‍🚀",
        "مر",
        "ﷺ" * 200,
    ):
        await attacker.expect_answer(LIST, search=search)
    for given in ({}, {"first": None}, {"first": None, "after": None, "search": None}, {"first": 100}, {"search": ""}):
        await attacker.expect_answer(LIST, **given)
    assert attacker.problems == []


async def test_registrations_that_cannot_be_are_refused_by_name(attacker: Attacker) -> None:
    right = {"name": "Bob", "email": "bob@example.com", "password": "long enough to be one"}
    wrong: dict[str, list[Any]] = {
        "name": ["", " ", "a\0b", "a\r\nb", "\u202eevil", "x" * 101, "x" * 1_000_000, None, 5, {"$gt": ""}, ["a"]],
        "email": ["", "bob", "a\0@example.com", "a\r\nBcc: c@example.com", "x" * 1_000_000, "é" * 1_000_000 + "@example.com",
                  "bob@localhost", "bob@example.com,eve@example.com", None, 5, {"$gt": ""}, ["bob@example.com"]],
        "password": ["", "short", "x" * 1001, "x" * 1_000_000, None, 5, {"$gt": ""}, ["long enough to be one"]],
    }  # fmt: skip
    for field, values in wrong.items():
        for value in values:
            await attacker.expect_refusal(field, REGISTER, input=right | {field: value})
    await attacker.expect_refusal("emailVerified", REGISTER, input=right | {"emailVerified": True})
    for token in ("", "x", "x" * 43, "\0" * 43, "é" * 43, "x" * 1_000_000, None, 5, {"$gt": ""}):
        await attacker.expect_refusal("token", CONFIRM, token=token)
    assert attacker.problems == []


async def test_credentials_of_the_wrong_kind_are_refused(attacker: Attacker) -> None:
    for wrong in (None, 5, {"$gt": ""}, {"$ne": None}, ["x"]):
        await attacker.expect_refusal("email", SIGN_IN, email=wrong, password="x")
        await attacker.expect_refusal("password", SIGN_IN, email="ada@example.com", password=wrong)
    for email, password in (("\0", "\0"), ("x" * 1_000_000, "x"), ("ada@example.com", "x" * 1_000_000), ("", "")):
        response = await attacker.send(SIGN_IN, {"email": email, "password": password})
        assert response.json()["errors"][0]["extensions"]["code"] == "BAD_CREDENTIALS"
    assert attacker.problems == []


async def test_invalid_unicode_is_rejected(attacker: Attacker, database: Database) -> None:
    """Lone surrogates (escaped in JSON, or in a GraphQL string) and bytes that are not UTF-8."""
    before = await attacker.contents()
    for value in ("\ud800", "a\ud800", "\udc00b", "\ud800\ud800", "\udfff\ud800"):
        for query, variables in (
            (CREATE, {"input": {"name": value}}),
            (CREATE, {"input": {"name": "n", "canvasData": {"a": value}}}),
            (CREATE, {"input": {"name": "n", "canvasData": {value: 1}}}),
            (REGISTER, {"input": {"name": value, "email": "b@example.com", "password": "long enough to be one"}}),
            (REGISTER, {"input": {"name": "n", "email": value + "b@example.com", "password": "long enough to be one"}}),
            (REGISTER, {"input": {"name": "n", "email": "b@example.com", "password": "long enough to be one" + value}}),
            (SIGN_IN, {"email": value, "password": value}),
            (CONFIRM, {"token": value * 43}),
            (LIST, {"search": value}),
            (LIST, {"after": value * 32}),
            ('mutation { createProject(input: {name: "\\uD800"}) { id } }', {}),
            ('mutation { createProject(input: {name: "\\u{D800}"}) { id } }', {}),
        ):
            response = await attacker.send(query, variables)
            assert response.status_code in (200, 400), query
            codes = {error["extensions"]["code"] for error in response.json()["errors"]}
            assert codes <= {"BAD_REQUEST", "GRAPHQL_PARSE_FAILED"}, (query, response.text)
    for body in (
        b'{"query": "{ me { id } }", "variables": {"a": "\xff"}}',
        b"\xff\xfe",
        b'{"query": "{ me { \xc0\xaf } }"}',
    ):
        response = await attacker.client.http.post(
            "/graphql",
            content=body,
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {attacker.client.token}"},
        )
        assert response.status_code == 400
        assert "UTF-8" in response.text
    assert await attacker.contents() == before


async def test_literals_in_the_query_meet_the_same_rules_as_variables(attacker: Attacker) -> None:
    for literal in (
        '{name: "n", canvasData: {a: 123456789012345678901234567890}}',
        '{name: "n", canvasData: {a: 1e400}}',
        '{name: "n", canvasData: {a: 1, a: 2}}',
        "{name: 5}",
        '{name: "n", nothing: 1}',
        '{name: "n", canvasData: ' + "{a:" * 98 + "1" + "}" * 98 + "}",
    ):
        before = await attacker.contents()
        answer = await attacker.client.ask(f"mutation {{ createProject(input: {literal}) {{ id }} }}")
        assert answer.code in ("GRAPHQL_VALIDATION_FAILED", "INVALID"), literal
        assert await attacker.contents() == before


async def test_a_signed_in_attacker_cannot_smuggle_operators_in_through_json(
    attacker: Attacker, database: Database
) -> None:
    """What looks like MongoDB's own syntax stays what it is: a value, or refused."""
    for value in ('{"$ne": null}', "[$ne]", "$ROOT", "$$NOW", "this.a"):
        given = {"name": value, "canvasData": {"a": value}}
        await attacker.expect_answer(UPDATE, id=attacker.project_id, input=given)
        raw = await database.raw["projects"].find_one({"_id": bson.ObjectId(attacker.project_id)})
        assert raw is not None
        assert (raw["name"], raw["canvasData"]) == (value, {"a": value})
    assert attacker.problems == []
