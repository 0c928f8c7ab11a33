"""The application as a whole: its settings reach what they are for, it starts or says why not,
and leaves nothing running."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pymongo.errors import InvalidOperation
from tests.serving import Client, serve

import ximler
from ximler.app import create
from ximler.core.settings import Settings, SettingsError
from ximler.database import Database

pytestmark = pytest.mark.slow

PACKAGE = Path(ximler.__file__).parent


@pytest.fixture
def ours(settings: Settings, database: Database) -> Settings:
    return msgspec.structs.replace(settings, database=database.name)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"secret_key": None}, "XIMLER_SECRET_KEY"),
        ({"secret_key": "short"}, "XIMLER_SECRET_KEY"),
        ({"trusted_proxies": ("proxy.internal",)}, "XIMLER_TRUSTED_PROXIES"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_served(
    ours: Settings, mongodb_uri: str, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        create(msgspec.structs.replace(ours, **wrong), uri=mongodb_uri)


async def test_the_limits_of_the_settings_are_those_of_graphql(ours: Settings, mongodb_uri: str) -> None:
    tight = msgspec.structs.replace(
        ours, graphql_introspection=False, graphql_max_depth=3, graphql_max_cost=8_000, max_body_mb=1
    )
    async with serve(tight, mongodb_uri) as app:
        client = await Client(app).join("ada@example.com")
        assert (await client.ask("{ __schema { types { name } } }")).code == "GRAPHQL_VALIDATION_FAILED"
        assert not (await client.ask("{ me { subscription { status } } }")).errors
        assert (await client.ask("{ me { subscription { plan { name } } } }")).code == "QUERY_LIMIT_EXCEEDED"
        assert not (await client.ask("{ projects(first: 20) { nodes { name } } }")).errors
        assert (await client.ask("{ projects(first: 100) { nodes { canvasData } } }")).code == "QUERY_LIMIT_EXCEEDED"
        assert (await client.create("n", canvasData={"x": "y" * 1_000_000})).status == 413
    async with serve(ours, mongodb_uri) as app:
        assert not (await Client(app).ask("{ __schema { types { name } } }")).errors


async def test_concurrent_requests_are_not_mixed_up(client: Client, database: Database) -> None:
    people = [await Client(client.app).join(f"p{n}@example.com") for n in range(4)]
    for n, person in enumerate(people):
        await person.create(f"project of p{n}")

    async def ask(n: int) -> str:
        answer = await people[n].ask("{ me { email projects { nodes { name } } usage { used } } }")
        me = answer["me"]
        assert me["email"] == f"p{n}@example.com"
        assert [node["name"] for node in me["projects"]["nodes"]] == [f"project of p{n}"]
        return str(answer.headers["x-request-id"])

    ids = await asyncio.gather(*(ask(n % 4) for n in range(80)))
    assert len(set(ids)) == 80


async def test_after_shutdown_nothing_of_it_runs(ours: Settings, mongodb_uri: str) -> None:
    before = asyncio.all_tasks()
    threads = set(threading.enumerate())
    async with serve(ours, mongodb_uri) as app:
        await Client(app).join("ada@example.com")
        client = app._app.state.database.client  # type: ignore[attr-defined]  # the application inside `Requests`
        assert set(threading.enumerate()) - threads
    left: set[str] = set()
    for _ in range(50):  # threads end on their own once their pool is closed
        left = {t.name for t in set(threading.enumerate()) - threads if t.name.startswith("argon2")}
        left |= {str(task) for task in asyncio.all_tasks() - before if _is_ours(task)}
        if not left:
            break
        await asyncio.sleep(0.05)
    assert not left
    with pytest.raises(InvalidOperation):
        await client.admin.command("ping")


def _is_ours(task: asyncio.Task[object]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and Path(code.co_filename).is_relative_to(PACKAGE)


async def test_two_applications_share_one_database(ours: Settings, mongodb_uri: str) -> None:
    """As several worker processes do: what one has said the other knows."""
    async with serve(ours, mongodb_uri) as one, serve(ours, mongodb_uri) as two:
        ada = await Client(one).join("ada@example.com")
        elsewhere = Client(two, token=ada.token)
        made = await ada.create("here")
        found = await elsewhere.ask("query ($id: ID!) { project(id: $id) { name } }", id=made["createProject"]["id"])
        assert found["project"] == {"name": "here"}
        ends = await asyncio.gather(*((ada, elsewhere)[n % 2].create(f"P{n}") for n in range(20)))
        assert sum(not end.errors for end in ends) == 2
        await elsewhere.ask("mutation { signOut }")
        async with asyncio.timeout(5):  # a second, on a machine that has nothing else to do
            while (answer := await ada.ask("{ me { id } }")).code is None:
                pass
        assert answer.code == "SESSION_EXPIRED"
