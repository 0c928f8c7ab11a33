"""Everything that a caller without an account can make the server store is
bounded by address and in all, small, and expires.

The table is the one of docs/security.md. A field or route that is open to anonymous callers needs an entry.
"""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from tests.attacks.surface import routes_of
from tests.contents import contents
from tests.graphql.fields import FIELDS
from tests.serving import Client

from ximler.accounts import attempts, credentials, idempotency, registration, throttle, unconfirmed
from ximler.accounts.idempotency import Answer
from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import Throttled
from ximler.audit import refusals
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema import CATALOGUE
from ximler.schema.registration import REGISTRATIONS, Registration

SECURITY = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
_TIMES = 60  # more than any limit allows in an hour
_LINK = "x" * 43
_TOKEN = "x" * 84  # of a signed URL
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
    "/v1/imports/{project}": "{{}}",
    "/webhooks/sandbox": "{{}}",
    "/webhooks/stripe": "{{}}",
}


@pytest.fixture
def keyring(settings: Settings) -> Iterator[Keyring]:
    made = Keyring(settings)
    yield made
    made.close()


def bounds(column: int = 0) -> dict[str, int]:
    """Documents by collection, for one address and hour; or of all networks together."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+)", SECURITY, re.MULTILINE)
    return {name: int(most[column].replace(",", "")) for name, *most in rows}


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
            method = "PUT" if path.startswith("/v1/imports") else "POST"
            url = path.replace("{project}", f"{ObjectId()}?token={_TOKEN}")
            await client.http.request(method, url, content=form.format(n=n), headers={"Content-Type": kind})
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


def test_the_table_names_the_limits_over_all_networks() -> None:
    assert bounds(1) == unconfirmed.MOST | {"auditlogs": refusals._MOST}


ASKS = {
    "register": (registration.register, {"name": "M", "password": "correct horse battery"}, 30),
    "reset": (credentials.request_reset, {}, 20),
}


@pytest.mark.parametrize(("work", "more", "most"), ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("subscribers", ["2001:db8:7:{n:x}::1", "198.51.100.{n}"], ids=["IPv6 /48", "IPv4 /24"])
async def test_the_subscribers_of_a_network_are_limited_together(
    database: Database,
    keyring: Keyring,
    monkeypatch: pytest.MonkeyPatch,
    work: Any,
    more: Any,
    most: int,
    subscribers: str,
) -> None:
    monkeypatch.setattr(throttle, "_NEIGHBOURS", 0.1)  # a tenth of what one address may

    async def ask(n: int, address: str) -> bool:
        try:
            await work(database, keyring, Actor(address=address), email=f"p{n}@example.com", **more)
        except Throttled:
            return False
        return True

    assert [await ask(n, subscribers.format(n=n)) for n in range(8)].count(True) == most // 10
    assert await ask(9, "203.0.113.1" if "." in subscribers else "2001:db8:8::1")  # from elsewhere


async def test_a_blocked_address_does_not_use_up_the_attempts_of_its_network(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "_NEIGHBOURS", 2)
    rule = throttle.Rule(name="t", free=2, window=timedelta(hours=1))

    async def ask(address: str) -> bool:
        try:
            await throttle.spend(database, throttle.at_address(keyring, rule, address))
        except Throttled:
            return False
        return True

    assert [await ask("198.51.100.1") for _ in range(9)].count(True) == 2
    assert [await ask("198.51.100.2") for _ in range(2)] == [True, True]


FLOODS = [f"198.{n // 30}.{n}.7" for n in range(90)]  # three networks of 30
HONEST = "203.0.113.9"


@pytest.mark.parametrize("name", ["registrations", "outbox", "replies"])
async def test_a_flood_from_many_networks_removes_itself_and_no_stranger_from_elsewhere(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(unconfirmed.MOST, name, 20)

    async def store(n: int, address: str) -> None:
        actor = Actor(address=address)
        match name:
            case "registrations":
                later = database.clock.now() + timedelta(hours=24, seconds=n)
                network = unconfirmed.network(keyring, address)
                await database[REGISTRATIONS].insert(
                    Registration(
                        name=address, email=f"p{n}@example.com", password="x", expires_at=later, network=network
                    )
                )
            case "outbox":
                await credentials.request_reset(database, keyring, actor, email=f"{address}@example.com")
            case _:
                await reply(actor, f"key-{address}")

    async def reply(actor: Actor, key: str) -> None:
        async def work() -> Answer:
            return Answer(200, b"x" * 5_000)

        await idempotency.once(database, keyring, actor, key=key, request=b"", work=work)

    await reply(Actor(kind="user", user_id=ObjectId()), "mine")  # of an account
    await store(0, HONEST)  # the oldest
    for n, address in enumerate(FLOODS):
        await store(n, address)
    before = await database.raw[name].count_documents({})
    assert (await unconfirmed.trim(database=database))[name] == 91 - 18
    left = await database.raw[name].find({}).to_list()
    assert len(left) == before - 73
    assert all(len(each.get("answer", b"")) < 100 for each in left if "network" in each)  # too long to be kept
    sizes = Counter(each.get("network") or each.get("payload", {}).get("network") for each in left)
    sizes.pop(None, None)  # replies of accounts
    assert sizes.pop(unconfirmed.network(keyring, HONEST)) == 1
    assert sorted(sizes.values()) == [5, 6, 6]
    assert (await unconfirmed.trim(database=database))[name] == 0


async def test_counters_of_single_attempts_are_removed_before_those_that_block(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(unconfirmed.MOST, "throttles", 20)
    victim = attempts.account_key(keyring, "victim@example.com")
    for _ in range(6):
        await throttle.fail(database, [victim])
    await throttle.fail(database, [attempts.account_key(keyring, f"p{n}@example.com") for n in range(90)])
    assert (await unconfirmed.trim(database=database))["throttles"] == 91 - 18
    with pytest.raises(Throttled):
        await throttle.spend(database, [victim])


async def test_failures_from_many_networks_do_not_fill_the_audit_log(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MOST", 20)
    for n in range(120):
        actor = Actor(address=f"198.{n}.100.1")
        await refusals.count(database, actor, Action.SIGN_IN_FAILED, resource="users", subject=f"p{n}")
    found = await database.audit_logs.find({"action": Action.SIGN_IN_FAILED}, sort=[("createdAt", 1)])
    assert len(found) == 21
    assert found[-1].metadata["entries_of_hour"] == 100
