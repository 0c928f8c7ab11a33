"""Every authenticated REST route × anonymous, a key without its scope, and a key with all scopes."""

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from litestar.handlers import HTTPRouteHandler
from tests.graphql.test_scopes import key_of
from tests.serving import Client, serve

from ximler.accounts import roles
from ximler.accounts.keyring import Keyring
from ximler.apikeys.scopes import SCOPES
from ximler.core.actor import Actor
from ximler.core.errors import LimitExceeded
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.http.authentication import Authentication


def routes(app: Any) -> list[tuple[str, str, str | None]]:
    """Method, path and scope of each."""
    found = []
    for route in app._app._litestar.routes:
        for handler in getattr(route, "route_handlers", ()):
            if isinstance(handler, HTTPRouteHandler) and "scope" in handler.opt:
                found += [(method, route.path, handler.opt["scope"]) for method in sorted(handler.http_methods)]
    return [entry for entry in found if entry[0] not in ("HEAD", "OPTIONS")]


@pytest.mark.slow
async def test_a_route_admits_the_declared_callers(ada: Client) -> None:
    declared = routes(ada.app)
    assert len(declared) >= 2
    everything = await key_of(ada, *SCOPES)
    for method, path, scope in declared:
        assert scope is None or scope in SCOPES
        assert (await Client(ada.app).http.request(method, path)).status_code == 401, path
        wrong = await key_of(ada, *(name for name in SCOPES if name != scope)) if scope else everything
        answer = await ada.http.request(method, path, headers={"Authorization": f"Bearer {wrong.token}"})
        assert answer.status_code == 403, (path, answer.text)
        if path.startswith("/v1/"):
            assert answer.json()["code"] == ("SCOPE_MISSING" if scope else "FORBIDDEN")
        else:  # a page
            assert answer.headers["content-type"].startswith("text/html"), path


async def test_a_cached_caller_costs_no_round_trip_and_an_uncached_one_costs_one(
    ada: Client, database: Database
) -> None:
    key = await key_of(ada, "account:read")
    assert database.name
    await ada.app._app.state.feed.caught_up()  # type: ignore[attr-defined]  # the application inside `Requests`
    for caller, first in ((Client(ada.app, token=ada.token), None), (key, ("aggregate", "apikeys"))):
        with round_trips() as trips:
            assert (await caller.ask("{ me { email } }"))["me"]["email"] == "ada@example.com"
        assert trips.count(("aggregate", "sessions")) <= 1
        if first:
            assert trips[0] == first
        with round_trips() as trips:
            await caller.ask("{ me { email } }")
        assert [trip for trip in trips if trip[1] in ("sessions", "apikeys", "users")] == []


async def test_the_requests_of_an_account_that_are_under_way_are_bounded(
    ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ximler.http.authentication._MAX_OPEN", 3)
    project = (await ada.create("P"))["createProject"]["id"]
    ask = partial(ada.http.get, f"/v1/projects/{project}/canvas", headers={"Authorization": f"Bearer {ada.token}"})
    found = await asyncio.gather(*(ask() for _ in range(12)))
    assert {each.status_code for each in found} == {200, 429}
    assert (await ask()).status_code == 200


@pytest.mark.slow
async def test_operators_without_a_second_factor_are_users_where_one_is_required(
    settings: Settings, database: Database, mongodb_uri: str
) -> None:
    settings = msgspec.structs.replace(settings, database=database.name, operators_need_factor=True)
    async with serve(settings, mongodb_uri) as app:
        ada = await Client(app).join("ada@example.com")
        user_id = ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])
        await roles.grant(database, Actor(kind="operator", via="cli"), user_id, "operator")
        users = "{ users(first: 1) { nodes { id } } }"
        async with asyncio.timeout(20):
            while (await ada.ask(users)).code != "FORBIDDEN":  # noqa: ASYNC110 (polls an endpoint)
                await asyncio.sleep(0.05)
        await database.raw["credentials"].update_one({"_id": user_id}, {"$set": {"totpSecret": b"enrolled"}})
        async with asyncio.timeout(20):
            while (await ada.ask(users)).code == "FORBIDDEN":  # noqa: ASYNC110 (polls an endpoint)
                await asyncio.sleep(0.05)


async def test_what_an_account_does_one_at_a_time_is_counted_until_its_end(
    settings: Settings, database: Database
) -> None:
    authentication = Authentication(database, Keyring(settings), settings, Feed(database))
    first: dict[str, Any] = {}
    authentication.enter(first, "ada")
    authentication.enter_alone(first, "export", "ada")
    second: dict[str, Any] = {}
    authentication.enter(second, "ada")
    with pytest.raises(LimitExceeded, match="Another export"):
        authentication.enter_alone(second, "export", "ada")
    first["leave"]()
    authentication.enter_alone(second, "export", "ada")
    second["leave"]()
    assert not authentication._open
