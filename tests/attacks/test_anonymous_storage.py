"""Everything that a caller without an account can make the server store is
bounded by address, small, and expires.

The table is the one of docs/security.md. A field or route that is open to anonymous callers needs an entry.
"""

import re
from pathlib import Path

import pytest
from tests.attacks.surface import routes_of
from tests.contents import contents
from tests.graphql.fields import FIELDS
from tests.serving import Client

from ximler.database import Database
from ximler.schema import CATALOGUE

SECURITY = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
_TIMES = 60  # more than any limit allows in an hour
_LINK = "x" * 43
# `{n}` is another value in each call.
MUTATIONS = {
    "register": 'register(input: {{name: "M", email: "m{n}@example.com", password: "correct horse battery"}}) {{ accepted }}',
    "confirmEmail": f'confirmEmail(token: "{_LINK}", password: "p{{n}}") {{{{ token }}}}',
    "signIn": 'signIn(email: "m{n}@example.com", password: "wrong {n}") {{ token }}',
    "requestPasswordReset": 'requestPasswordReset(email: "m{n}@example.com") {{ accepted }}',
    "resetPassword": f'resetPassword(token: "{_LINK}", password: "correct horse {{n}}")',
    "confirmEmailChange": f'confirmEmailChange(token: "{_LINK}", password: "p{{n}}") {{{{ id }}}}',
    "reopenAccount": 'reopenAccount(email: "m{n}@example.com", password: "wrong {n}") {{ token }}',
}
FORMS = {
    "/confirm": f"token={_LINK}&password=p{{n}}",
    "/reset": f"token={_LINK}&password=correct+horse+{{n}}",
    "/reset/request": "email=r{n}@example.com",
    "/unsubscribe": f"token={_LINK}",
    "/email": f"token={_LINK}&password=p{{n}}",
    "/sandbox/checkout/{session}": "card=4242424242424242",
    "/v1/session": "email=s{n}@example.com&password=wrong",
    "/webhooks/sandbox": "{{}}",
    "/webhooks/stripe": "{{}}",
}


def bounds() -> dict[str, int]:
    """Documents by collection, for one address and hour."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", SECURITY, re.MULTILINE)
    return {name: int(most.replace(",", "")) for name, most in rows}


async def test_every_place_that_is_open_to_anonymous_callers_has_an_entry(client: Client) -> None:
    refused = {"UNAUTHENTICATED", "FORBIDDEN"}
    open_fields = {name for name, field in FIELDS.items() if field.anonymous not in refused}
    assert {name.removeprefix("Mutation.") for name in open_fields if name.startswith("Mutation.")} == MUTATIONS.keys()
    open_routes = {
        route.path for route in routes_of(client) if not route.secured and route.method in ("POST", "PUT", "PATCH")
    }
    assert open_routes == FORMS.keys()


def test_every_test_that_the_table_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", SECURITY))
    assert named
    assert {each for each in named if not (Path(__file__).parents[2] / each).exists()} == set()


def test_every_bound_is_of_a_collection_that_expires() -> None:
    by_name = {collection.name: collection for collection in CATALOGUE}
    for name in bounds():
        expires = any(index.ttl_seconds is not None for index in by_name[name].indexes)
        assert expires or name in ("auditlogs", "outbox"), name  # pruned by age; removed when done


@pytest.mark.slow
@pytest.mark.parametrize("times", [4, pytest.param(_TIMES, marks=pytest.mark.soak)])
async def test_an_hour_of_anonymous_requests_stores_little(client: Client, database: Database, times: int) -> None:
    before = await contents(database)
    for n in range(times):
        for field in MUTATIONS.values():
            headers = {"Idempotency-Key": f"key-{n}-{field[:6]}"} if n % 2 else {}
            body = {"query": f"mutation {{ {field.format(n=n)} }}"}
            assert (await client.http.post("/graphql", json=body, headers=headers)).status_code < 500
        for path, form in FORMS.items():
            json = path.startswith(("/v1", "/webhooks"))
            kind = "application/json" if json else "application/x-www-form-urlencoded"
            await client.http.post(path, content=form.format(n=n), headers={"Content-Type": kind})
    after = await contents(database)
    grown = {
        name: (len(found) - len(before.get(name, [])), sum(map(len, found)) - sum(map(len, before.get(name, []))))
        for name, found in after.items()
    }
    grown = {name: (count, size) for name, (count, size) in grown.items() if count > 0 and name != "meters"}
    allowed = bounds()
    assert grown.keys() <= allowed.keys()
    assert {name: count for name, (count, _) in grown.items() if count > allowed[name]} == {}, grown
    assert sum(size for _, size in grown.values()) < 6_000 * times, grown
