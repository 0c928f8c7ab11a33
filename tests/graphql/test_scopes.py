"""Every root field × API keys with every scope, with all but the right one, and with none:
a key does what it was made for."""

import re
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from graphql import GraphQLObjectType
from tests.graphql.fields import FIELDS, MARK
from tests.graphql.test_access import COUNTED, SCHEMA, ask_for_everything, contents, victim
from tests.serving import Client

from ximler.apikeys import keys
from ximler.apikeys.scopes import SCOPES
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.graphql.engine.scopes import find_scope

__all__ = ["victim"]  # the fixture


def declared() -> dict[str, str | None]:
    roots = (SCHEMA.query_type, SCHEMA.mutation_type)
    return {f"{root.name}.{name}": find_scope(field) for root in roots if root for name, field in root.fields.items()}


DECLARED = declared()
METERED = frozenset({"apikeys", "entitlements", "meters", "quotas", "usage", "usagebatches"})


async def key_of(client: Client, *scopes: str) -> Client:
    """A program that acts for the client with a key of these scopes."""
    user_id = ObjectId((await client.ask("{ me { id } }"))["me"]["id"])
    database = client.app._app.state.database  # type: ignore[attr-defined]  # the application inside `Requests`
    operator = Actor(kind="operator", via="cli")  # who alone grants some of the scopes
    made = await keys.create(database, operator, name="k", permissions=scopes, user_id=user_id)
    return Client(client.app, token=made.secret)


def test_every_scope_that_a_field_asks_for_exists_and_no_field_of_security_takes_a_key() -> None:
    asked = set()
    for type_ in SCHEMA.type_map.values():
        for field in getattr(type_, "fields", {}).values():
            if hasattr(field, "resolve") and (scope := find_scope(field)):
                asked.add(scope)
    assert asked <= set(SCOPES)
    for name in ("createApiKey", "rotateApiKey", "updateApiKey", "revokeApiKey", "changePassword", "revokeSession"):
        assert DECLARED[f"Mutation.{name}"] is None
    assert DECLARED["Query.apiKeys"] is None
    assert DECLARED["Query.sessions"] is None


def test_the_generated_schema_shows_the_scopes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "schema.graphql").read_text("utf-8")
    assert re.search(r"An API key needs the scope `projects:write`\.", text)
    assert '  me: User! @scope(requires: "account:read")' in text
    assert "  plans: [Plan!]! @scope\n" in text


@pytest.mark.slow
async def test_a_key_may_use_a_field_exactly_if_it_has_its_scope(victim: Any, ada: Client, database: Database) -> None:
    """Asked for by keys of Ada's, about the victim's things: what the scope lets pass still is not hers."""
    everything = await key_of(ada, *SCOPES)
    all_but = {scope: await key_of(ada, *(name for name in SCOPES if name != scope)) for scope in SCOPES}
    for coordinate, scope in DECLARED.items():
        field = FIELDS[coordinate]
        query = ask_for_everything(coordinate, field.arguments[0], victim)
        before = await kept(database)
        lacking = await (all_but[scope] if scope else everything).ask(query)
        if scope == "":
            assert not lacking.errors, coordinate
            continue
        assert await kept(database) == before, coordinate
        if scope is None:
            assert lacking.code == "FORBIDDEN", coordinate
            assert coordinate in lacking.errors[0]["message"]
            continue
        assert (lacking.code, lacking.fields) == ("SCOPE_MISSING", {"scope": scope}), coordinate
        having = await everything.ask(query)
        said = {error["extensions"]["code"] for error in having.errors}
        assert said <= {field.stranger, "FORBIDDEN"}, (coordinate, having.errors)
        assert "SCOPE_MISSING" not in said
        theirs = [
            d for d in await database.raw["projects"].find({"userId": victim.user_id}).to_list() if d["name"] == MARK
        ]
        assert len(theirs) == 2, coordinate


async def kept(database: Database) -> dict[str, list[bytes]]:
    """Everything but what counts the use of keys, and notes refusals."""
    everything = await contents(database)
    return {name: documents for name, documents in everything.items() if name not in METERED | COUNTED}


async def test_a_nested_field_requires_its_own_scope(ada: Client) -> None:
    """A key that may read the profile does not read projects by way of it."""
    await ada.create("Bridge")
    key = await key_of(ada, "account:read")
    assert (await key.ask("{ me { email } }"))["me"] == {"email": "ada@example.com"}
    for below in ("projects { nodes { name } }", "subscription { status }", "usage { used }", "unreadNotifications"):
        answer = await key.ask(f"{{ me {{ email {below} }} }}")
        assert answer.code == "SCOPE_MISSING", below
        assert "Bridge" not in str(answer.data)
    both = await key_of(ada, "account:read", "projects:read")
    answer = await both.ask("{ me { projects { nodes { name } } } }")
    assert answer["me"]["projects"]["nodes"] == [{"name": "Bridge"}]


def test_every_field_with_a_resolver_below_the_user_asks_for_a_scope() -> None:
    """Otherwise a key with `account:read` would get fields that are added to the user later."""
    user = SCHEMA.type_map["User"]
    assert isinstance(user, GraphQLObjectType)
    for name, field in user.fields.items():
        if getattr(field.resolve, "__qualname__", "").startswith("batch_field"):
            assert find_scope(field), name
