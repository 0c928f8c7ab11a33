"""Subscriptions as clients meet them: each event once, nothing after the access ends, nothing left behind."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from bson import ObjectId
from tests.node import node_with
from tests.serving import Client

from ximler.core.streams import MAX_STREAMS, RESYNC, Event, Streams
from ximler.database import Database
from ximler.database.topics import _MAX_WAITING, Follower, Topics
from ximler.notifications import inbox
from ximler.schema.user import User

AUDIT = Path(__file__).parent / "audit"
PARTS = 'multipart/mixed;boundary="graphql";subscriptionSpec=1.0,application/json'
ADDED = "subscription { notificationAdded { title } }"


class Stream:
    """What a client receives."""

    def __init__(self, body: bytes) -> None:
        self.status = 0
        self.type = ""
        self.text = ""
        self.complete = False
        self.leave = asyncio.Event()
        self._sent = [{"type": "http.request", "body": body, "more_body": False}]
        self._changed = asyncio.Event()
        self.answering: asyncio.Task[None] | None = None

    async def receive(self) -> dict[str, Any]:
        if self._sent:
            return self._sent.pop()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.type = dict(message["headers"])[b"content-type"].decode()
        else:
            self.text += message.get("body", b"").decode()
            self.complete = not message.get("more_body")
        self._changed.set()

    @property
    def events(self) -> list[dict[str, str]]:
        blocks = [block for block in self.text.split("\n\n")[:-1] if block.startswith("event: ")]
        return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]

    @property
    def responses(self) -> list[Any]:
        return [json.loads(event["data"]) for event in self.events if event["event"] == "next"]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def stream(
    client: Client, query: str, *, accept: str = "text/event-stream", **headers: str
) -> AsyncIterator[Stream]:
    """`until` it begins, or is complete."""
    body = json.dumps({"query": query}).encode()
    found = Stream(body)
    sent = {"authorization": f"Bearer {client.token}", "host": "ximler.test", "content-type": "application/json"}
    sent |= {"accept": accept} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope: Any = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/graphql", "raw_path": b"/graphql", "root_path": "", "query_string": b"", "state": {},
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("192.0.2.1", 50000), "server": ("ximler.test", 80),
    }  # fmt: skip
    app: Any = client.app
    found.answering = asyncio.create_task(app(scope, found.receive, found.send))
    try:
        await found.until(lambda: bool(found.text) or found.complete)
        yield found
    finally:
        found.leave.set()
        await asyncio.wait([found.answering], timeout=20)
        assert found.answering.done()


def topics(client: Client) -> Topics:
    app: Any = client.app
    return app._app.state.topics  # type: ignore[no-any-return]  # the application inside `Requests`


async def user_of(client: Client, database: Database) -> User:
    return await database.users.get(ObjectId((await client.ask("{ me { id } }"))["me"]["id"]))


@pytest.mark.slow
async def test_each_notification_is_one_event_and_a_client_that_connects_again_receives_those_since(
    ada: Client, database: Database
) -> None:
    user = await user_of(ada, database)
    async with stream(ada, ADDED) as first, stream(ada, ADDED, accept=PARTS) as parts:
        assert (first.type, parts.type) == (
            "text/event-stream",
            "multipart/mixed;boundary=graphql;subscriptionSpec=1.0",
        )
        for number in range(3):
            await inbox.notify(database, user, "SYSTEM", f"Number {number}", "…")
        await first.until(lambda: len(first.responses) == 3)
        await parts.until(lambda: parts.text.count("payload") == 3)
    expected = [{"data": {"notificationAdded": {"title": f"Number {number}"}}} for number in range(3)]
    assert first.responses == expected
    assert [json.loads(part.split("\r\n\r\n")[1]) for part in parts.text.split("\r\n--graphql")[1:-1]] == [
        {"payload": each} for each in expected
    ]
    async with stream(ada, ADDED, last_event_id=first.events[0]["id"]) as again:
        await again.until(lambda: len(again.responses) == 2)
        assert again.events == first.events[1:]
    async with stream(ada, ADDED, last_event_id="82") as late:
        await late.until(lambda: bool(late.responses))
        assert late.responses[0] == {"data": None, "extensions": {"resync": True}}
    assert topics(ada).followers == 0


@pytest.mark.slow
async def test_usage_and_a_project_are_sent_as_they_are_after_each_change(ada: Client) -> None:
    project = (await ada.create(name="Plan"))["createProject"]["id"]
    changed = f'subscription {{ projectChanged(id: "{project}") {{ name }} }}'
    used = "subscription { usageChanged { resource used } }"
    async with stream(ada, changed) as of_project, stream(ada, used) as of_usage:
        await ada.ask('mutation ($id: ID!) { updateProject(id: $id, input: {name: "New"}) { id } }', id=project)
        await of_project.until(lambda: {"data": {"projectChanged": {"name": "New"}}} in of_project.responses)
        await ada.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=project)
        await of_project.until(lambda: {"data": {"projectChanged": None}} in of_project.responses)
        await of_usage.until(
            lambda: any({"resource": "projects", "used": 0} in r["data"]["usageChanged"] for r in of_usage.responses)
        )
        await of_project.until(lambda: of_project.complete)
        assert of_project.events[-1] == {"event": "complete", "data": ""}
    async with stream(ada, changed) as gone:
        assert gone.responses[0]["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        assert gone.events[-1] == {"event": "complete", "data": ""}


async def test_requests_without_events_are_one_response_and_invalid_ones_say_so_in_an_event(ada: Client) -> None:
    async with stream(ada, "{ me { name } }") as query, stream(ada, "subscription { nothing }") as invalid:
        await query.until(lambda: query.complete)
        await invalid.until(lambda: invalid.complete)
    assert [event["event"] for event in query.events] == ["next", "complete"]
    assert query.responses == [{"data": {"me": {"name": "Ada"}}}]
    assert (invalid.status, [event["event"] for event in invalid.events]) == (200, ["next", "complete"])
    assert invalid.responses[0]["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    async with stream(ada, ADDED, accept="application/json") as refused:
        assert (refused.status, "Send Accept: text/event-stream" in refused.text) == (406, True)
    async with stream(ada, "{ me { name } }", accept="application/json, text/event-stream") as both:
        assert both.type.startswith("application/json")
    for nobody in (Client(ada.app, token="x" * 43), Client(ada.app, token="")):
        async with stream(nobody, ADDED) as unknown:
            assert unknown.status == 401


async def test_a_stream_of_a_project_ends_with_its_share(ada: Client) -> None:
    project = (await ada.create(name="Plan"))["createProject"]["id"]
    bob = await Client(ada.app).join("bob@example.com")
    share = 'mutation ($p: ID!) { shareProject(projectId: $p, email: "bob@example.com", role: READER) { role } }'
    await ada.ask(share, p=project)
    changed = f'subscription {{ projectChanged(id: "{project}") {{ name }} }}'
    async with stream(bob, changed) as theirs, stream(bob, changed, accept=PARTS) as parts, stream(ada, changed) as own:
        await ada.ask('mutation ($p: ID!) { unshareProject(projectId: $p, email: "bob@example.com") }', p=project)
        async with asyncio.timeout(5):  # a second, beside busy processors
            await theirs.until(lambda: theirs.complete)
            await parts.until(lambda: parts.complete)
        assert theirs.responses == [{"data": {"projectChanged": None}}]
        assert parts.text.endswith("--graphql--\r\n")
        assert not own.complete
    await bob.http.aclose()


async def test_a_stream_ends_with_the_scope_of_its_key(ada: Client, database: Database) -> None:
    project = (await ada.create(name="Plan"))["createProject"]["id"]
    made = await ada.ask(
        'mutation { createApiKey(input: {name: "k", permissions: ["projects:read"]}) { secret key { id } } }'
    )
    key = Client(ada.app, token=made["createApiKey"]["secret"])
    async with stream(key, f'subscription {{ projectChanged(id: "{project}") {{ name }} }}') as events:
        key_id = made["createApiKey"]["key"]["id"]
        where = {"_id": ObjectId(key_id), "userId": (await user_of(ada, database)).id}
        await database.api_keys.patch(where, {"$set": {"permissions": ["usage:read"]}})
        async with asyncio.timeout(5):  # as above
            await events.until(lambda: events.complete)
        assert events.events == []
    await key.http.aclose()


async def test_a_project_of_another_user_is_not_found(ada: Client) -> None:
    bob = await Client(ada.app).join("bob@example.com")
    theirs = (await bob.create(name="Theirs"))["createProject"]["id"]
    async with stream(ada, f'subscription {{ projectChanged(id: "{theirs}") {{ name }} }}') as refused:
        assert refused.responses[0]["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    await bob.http.aclose()


@pytest.mark.slow
async def test_a_stream_ends_with_its_session_and_streams_are_limited(ada: Client) -> None:
    other = Client(ada.app)
    await other.sign_in("ada@example.com")
    async with stream(other, ADDED) as ending:
        await other.ask("mutation { signOut }")
        async with asyncio.timeout(5):  # a second, beside busy processors
            await ending.until(lambda: ending.complete)
        assert "complete" not in ending.text
    opened = [stream(ada, ADDED) for _ in range(MAX_STREAMS)]
    for each in opened:
        await each.__aenter__()
    async with stream(ada, ADDED) as refused:
        assert refused.status == 429
    for each in opened:
        await each.__aexit__(None, None, None)
    assert topics(ada).followers == 0
    assert len(topics(ada)._streams) == 0
    await other.http.aclose()


async def test_a_silent_stream_pings(ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ximler.core.streams.PING_S", 0.0)
    monkeypatch.setattr("ximler.core.streams.CHECK_S", 0.02)
    async with stream(ada, ADDED) as events, stream(ada, ADDED, accept=PARTS) as parts:
        await events.until(lambda: events.text.count(": ping\n\n") > 1)
        await parts.until(lambda: parts.text.count("\r\n\r\n{}\r\n--graphql") > 1)


async def test_a_slow_follower_has_a_bounded_queue_and_is_told_of_the_loss(database: Database) -> None:
    slow, last = Follower(each=True), Follower(each=False)
    for number in range(1, _MAX_WAITING + 3):
        for each in (slow, last):
            each.add(Event((number, 0, 0), "key", number))
    assert len(Streams()) == 0
    assert (await slow.events(0))[0] is RESYNC
    assert [event.id for event in await last.events(0)] == [_MAX_WAITING + 2]


@pytest.mark.slow
async def test_the_official_client_receives_events_and_errors_and_leaves_nothing_behind(
    ada: Client, database: Database, tmp_path: Path
) -> None:
    node, modules = await asyncio.to_thread(node_with, AUDIT)
    (tmp_path / "node_modules").symlink_to(modules, target_is_directory=True)
    shutil.copy(AUDIT / "sse.mjs", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/graphql"
        config = uvicorn.Config(ada.app, interface="asgi3", lifespan="off", ws="none", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))

        async def subscribed(query: str, count: int) -> asyncio.subprocess.Process:
            command = [node, "sse.mjs", url, ada.token or "", query, str(count)]
            return await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)

        client = await subscribed(ADDED, 2)
        async with asyncio.timeout(60):
            while not topics(ada).followers:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.02)
            user = await user_of(ada, database)
            for number in range(2):
                await inbox.notify(database, user, "SYSTEM", f"Number {number}", "…")
            lines = (await client.communicate())[0].splitlines()
            refused = (await (await subscribed("{ nothing }", 1)).communicate())[0]
            while topics(ada).followers:  # noqa: ASYNC110 (the same)
                await asyncio.sleep(0.02)
        server.should_exit = True
        await serving
    assert [json.loads(line)["data"]["notificationAdded"]["title"] for line in lines] == ["Number 0", "Number 1"]
    assert json.loads(refused)["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
