"""Apollo's persisted queries, and servers that execute none but listed ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from ximler.graphql.engine import read_trusted

HELLO = "query H($name: String) { hello(name: $name) }"


def named(query: str, **other: Any) -> dict[str, Any]:
    return {"persistedQuery": {"version": 1, "sha256Hash": hashlib.sha256(query.encode()).hexdigest(), **other}}


async def ask(client: httpx.AsyncClient, **body: Any) -> Any:
    return (await client.post("/", json=body)).json()


def code(answer: Any) -> str:
    assert "data" not in answer
    return str(answer["errors"][0]["extensions"]["code"])


async def test_a_text_is_known_by_its_hash_once_it_was_sent_with_it(serve: Any) -> None:
    client = serve()
    unknown = await ask(client, extensions=named(HELLO))
    assert code(unknown) == "PERSISTED_QUERY_NOT_FOUND"
    assert unknown["errors"][0]["message"] == "PersistedQueryNotFound"  # Apollo's clients look for it
    await ask(client, query=HELLO)  # without its hash: not known by it
    assert code(await ask(client, extensions=named(HELLO))) == "PERSISTED_QUERY_NOT_FOUND"
    assert await ask(client, query=HELLO, extensions=named(HELLO)) == {"data": {"hello": "Hello you"}}
    answer = await ask(client, extensions=named(HELLO), variables={"name": "Ada"})
    assert answer == {"data": {"hello": "Hello Ada"}}
    parameters = {"extensions": json.dumps(named(HELLO)), "variables": '{"name": "Bob"}'}
    assert (await client.get("/", params=parameters)).json() == {"data": {"hello": "Hello Bob"}}


async def test_a_hash_is_of_its_text_and_of_no_other(serve: Any) -> None:
    client = serve()
    assert code(await ask(client, query="{ hello }", extensions=named(HELLO))) == "PERSISTED_QUERY_INVALID"
    assert code(await ask(client, extensions=named(HELLO))) == "PERSISTED_QUERY_NOT_FOUND"


@pytest.mark.parametrize("given", [{"version": 2, "sha256Hash": "x"}, {"version": 1}, "x", 7, [], {}])
async def test_an_invalid_persisted_query_is_rejected(serve: Any, given: Any) -> None:
    assert code(await ask(serve(), query=HELLO, extensions={"persistedQuery": given})) == "PERSISTED_QUERY_INVALID"


async def test_only_valid_texts_are_kept_and_only_so_many(serve: Any, lab: Any) -> None:
    client = serve(engine=lab.make_engine(cached_documents=3))
    assert code(await ask(client, query="{ nope }", extensions=named("{ nope }"))) == "GRAPHQL_VALIDATION_FAILED"
    assert code(await ask(client, extensions=named("{ nope }"))) == "PERSISTED_QUERY_NOT_FOUND"
    texts = [f"{{ a{n}: hello }}" for n in range(5)]
    for text in texts:
        await ask(client, query=text, extensions=named(text))
    known = ["data" in await ask(client, extensions=named(text)) for text in texts]
    assert known == [False, False, True, True, True]


async def test_with_a_list_no_other_text_is_executed(serve: Any) -> None:
    client = serve(trusted={"hello": HELLO})
    assert await ask(client, query=HELLO) == {"data": {"hello": "Hello you"}}
    by_id = {"persistedQuery": {"version": 1, "sha256Hash": "hello"}}
    assert await ask(client, extensions=by_id, variables={"name": "Ada"}) == {"data": {"hello": "Hello Ada"}}
    for refused in (
        await ask(client, query="{ hello }"),
        await ask(client, query="{ hello }", extensions=by_id),
        await ask(client, query="{ hello }", extensions=named("{ hello }")),
        await ask(client, extensions=named("{ hello }")),
        await ask(client),
    ):
        assert code(refused) == "QUERY_NOT_TRUSTED"


def test_both_kinds_of_manifest_are_read(tmp_path: Path) -> None:
    file = tmp_path / "queries.json"
    apollo = {
        "format": "apollo-persisted-query-manifest",
        "version": 1,
        "operations": [{"id": "a", "name": "H", "body": HELLO}],
    }
    for manifest in (apollo, {"a": HELLO}):
        file.write_text(json.dumps(manifest))
        assert read_trusted(file) == {"a": HELLO}
    file.write_text("[1]")
    with pytest.raises(ValueError, match="object"):
        read_trusted(file)
