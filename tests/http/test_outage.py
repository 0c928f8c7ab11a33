"""An outage of the database: requests fail clearly, and succeed again afterwards."""

import asyncio
import gc
import os
import signal
import traceback
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from bson import ObjectId
from tests.serving import Client, serve

from ximler import setup
from ximler.core.settings import Settings
from ximler.database import connect
from ximler.database.failures import DatabaseUnavailable
from ximler.embedded import server
from ximler.embedded.server import Server

# PyMongo leaves a socket to the garbage collector where a connection that is being made is given up.
pytestmark = pytest.mark.slow

SETTINGS = Settings(
    secret_key="a secret key that is only for the tests",
    argon2_memory_kib=7168,
    argon2_time_cost=1,
    environment="development",
    worker=False,
    server_selection_timeout_ms=150,
    socket_timeout_ms=1500,
)


@pytest.fixture(autouse=True)
def no_sockets_for_others() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
async def mongod(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One of our own, to do to it what nobody else should feel."""
    running = await server.start(tmp_path_factory.mktemp("outage") / "data")
    database = await connect(running.uri)
    await setup.initialise(database)
    await database.close()
    yield running
    await running.stop()


async def until_ready(client: Client) -> None:
    """Raises TimeoutError when the application does not recover by itself."""
    async with asyncio.timeout(30):
        while (await client.http.get("/readyz")).status_code != 200:  # which takes a moment itself
            pass


async def everything_says_so(client: Client) -> None:
    """The response of each interface without a database."""
    ready = await client.http.get("/readyz")
    assert (ready.status_code, ready.json()["database"]) == (503, "disconnected")
    for path in ("/healthz", "/metrics", "/docs", "/"):
        assert (await client.http.get(path)).status_code == 200, path
    # Each takes as long as it looks for a server: so all at once.
    with_token = (
        "{ me { name } }",
        "{ projects { nodes { id } } }",
        'mutation { createProject(input: {name: "n"}) { id } }',
    )
    async with asyncio.timeout(5):
        while client.app._app.state.feed.fresh:  # type: ignore[attr-defined]  # noqa: ASYNC110 (who is known is so for a second)
            await asyncio.sleep(0.05)
    link = client.app._app.state.keyring.sign("confirm", ObjectId())  # type: ignore[attr-defined]  # inside `Requests`
    without = (
        "{ plans { id } }",
        'mutation { signIn(email: "ada@example.com", password: "correct horse battery") { token } }',
        'mutation { register(input: {name: "B", email: "b@example.com", password: "long enough to be one"}) { accepted } }',
        f'mutation {{ confirmEmail(token: "{link}", password: "x") {{ token }} }}',
    )
    somebody = Client(client.app)
    form, *answers = await asyncio.gather(
        client.http.post("/confirm", data={"token": link, "password": "x"}),
        *(client.ask(query) for query in with_token),
        *(somebody.ask(query) for query in without),
    )
    assert (form.status_code, "try again" in form.text) == (503, True)
    for query, answer in zip((*with_token, *without), answers, strict=True):
        assert answer.status == (503 if query in with_token else 200), query
        assert answer.data is None
        assert answer.errors[0]["extensions"]["kind"] == "UNAVAILABLE"
        assert "try again" in answer.errors[0]["message"]


async def test_a_killed_database_is_missed_clearly_and_found_again(mongod: Server) -> None:
    async with serve(SETTINGS, mongod.uri) as app:
        ada = await Client(app).join("ada@example.com")
        made = (await ada.create("before"))["createProject"]["id"]
        with structlog.testing.capture_logs() as logs:
            await mongod.kill()
            await everything_says_so(ada)
            await mongod.restart()
            await until_ready(ada)
            async with asyncio.timeout(10):  # the driver tells of it within half a second
                while not any(entry["event"] == "database reconnected" for entry in logs):  # noqa: ASYNC110 (a log line)
                    await asyncio.sleep(0.05)
        events = [entry["event"] for entry in logs]
        assert events.count("database disconnected") == 1
        assert events.count("database reconnected") == 1
        assert "graphql request failed" not in events
        assert "request failed" not in events
        found = await ada.ask("query ($id: ID!) { project(id: $id) { name } }", id=made)
        assert found["project"] == {"name": "before"}
        assert not (await ada.create("after")).errors


async def test_a_frozen_database_is_not_ready_within_seconds_and_thaws(mongod: Server) -> None:
    """It accepts connections and never answers: the kind of outage that makes everything hang."""
    async with serve(SETTINGS, mongod.uri) as app:
        bob = await Client(app).join("bob@example.com")
        os.kill(mongod.pids[0], signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):  # all of its threads stop within a moment, and an answer takes 2 s at most
                while (await bob.http.get("/readyz")).status_code != 503:
                    pass
            answer = await bob.ask("{ me { name } }")
            assert (answer.status, answer.errors[0]["extensions"]["kind"]) == (503, "UNAVAILABLE")
            assert (await bob.http.get("/healthz")).status_code == 200
        finally:
            os.kill(mongod.pids[0], signal.SIGCONT)
        await until_ready(bob)
        assert (await bob.ask("{ me { name } }"))["me"] == {"name": "Ada"}


async def test_requests_that_are_under_way_when_the_database_dies_end_in_answers(mongod: Server) -> None:
    """Each either happened or failed clearly, and what was acknowledged is there afterwards."""
    async with serve(SETTINGS, mongod.uri) as app:
        eve = await Client(app).join("eve@example.com")
        acknowledged: list[str] = []
        ends: set[str] = set()
        begun = asyncio.Event()

        async def work() -> None:
            for n in range(15):
                made = await eve.create(f"P{n}")
                if made.errors:
                    ends.add(made.errors[0]["extensions"]["kind"])
                    continue
                acknowledged.append(made["createProject"]["id"])
                if len(acknowledged) == 3:
                    begun.set()
                gone = await eve.ask(
                    "mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=made["createProject"]["id"]
                )
                ends.update(error["extensions"]["kind"] for error in gone.errors)

        async def accident() -> None:
            await begun.wait()
            await mongod.kill()
            await mongod.restart()

        await asyncio.gather(work(), work(), accident())
        await until_ready(eve)
        assert ends <= {"UNAVAILABLE", "LIMIT_EXCEEDED", "NOT_FOUND"}
        database = await connect(mongod.uri)
        try:
            owner = await database.users.get({"email": "eve@example.com"})
            stored = {str(found["_id"]) async for found in database.raw["projects"].find({"userId": owner.id})}
            assert set(acknowledged) <= stored
            gauge = await database.raw["gauges"].find_one({"_id": owner.id})
            alive = await database.raw["projects"].count_documents({"userId": owner.id, "deletedAt": None})
            assert gauge is not None
            assert gauge["projects"] == alive
        finally:
            await database.close()


async def test_an_application_without_a_database_does_not_start_or_reveal_the_password(
    free_port: int,
) -> None:
    uri = f"mongodb://user:hidden@127.0.0.1:{free_port}/?replicaSet=rs"
    with pytest.raises(ExceptionGroup) as refused:
        async with serve(SETTINGS, uri):
            pass
    assert refused.group_contains(DatabaseUnavailable, match=f"No MongoDB answers at mongodb://127.0.0.1:{free_port}/")
    assert "hidden" not in "".join(traceback.format_exception(refused.value))
