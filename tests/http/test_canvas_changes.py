"""`/v1/projects/{id}/canvas/changes`: every revision once and in order, and no stream outlives its access."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bson import ObjectId
from tests.serving import Client

from ximler.core.in_flight import InFlight
from ximler.core.streams import MAX_STREAMS
from ximler.projects import bases, edits, live
from ximler.projects.edits import LOGGED, Recent

RECORDS = "application/vnd.ximler.records+json"


class Stream:
    """What an EventSource receives."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.text = ""
        self.events: list[tuple[str, int, Any]] = []
        self.pings = 0
        self.leave = asyncio.Event()
        self._changed = asyncio.Event()
        self.answering: asyncio.Task[None] | None = None

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.text += message.get("body", b"").decode()
            if not message.get("more_body"):
                self.leave.set()  # `receive` of a server returns when the answer is complete
            *blocks, self.text = self.text.split("\n\n") if self.status == 200 else [self.text]
            for block in blocks:
                fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
                self.pings += block == ": ping"
                if "event" in fields:
                    self.events.append((fields["event"], int(fields["id"]), json.loads(fields["data"])))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> None:
        assert self.answering is not None
        await asyncio.wait([self.answering], timeout=20)
        assert self.answering.done()


class Editor:
    def __init__(self, client: Client, project: str) -> None:
        self.client, self.project = client, project
        self.path = f"/v1/projects/{project}/canvas"
        self._seq = 0

    async def save(self, **patch: Any) -> int:
        self._seq += 1
        answer = await self.client.http.patch(
            self.path,
            json={"client": "tab", "seq": self._seq, **patch},
            headers={"Authorization": f"Bearer {self.client.token}", "Content-Type": RECORDS},
        )
        assert answer.status_code == 200, answer.text
        return int(answer.json()["revision"])

    async def change(self, base: int, kind: str, content: Any) -> int:
        answer = await self.client.http.request(
            "PUT" if kind == "json" else "PATCH",
            self.path,
            params={"base": base},
            json=content,
            headers={"Authorization": f"Bearer {self.client.token}", "Content-Type": f"application/{kind}"},
        )
        assert answer.status_code == 200, answer.text
        return int(answer.json()["revision"])

    @asynccontextmanager
    async def stream(
        self, since: int | None = None, *, method: str = "GET", token: str | None = None, **headers: str
    ) -> AsyncIterator[Stream]:
        stream = Stream()
        sent = {"authorization": f"Bearer {token or self.client.token}", "host": "ximler.test"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope: Any = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": f"{self.path}/changes", "raw_path": f"{self.path}/changes".encode(), "root_path": "",
            "query_string": b"" if since is None else f"since={since}".encode(), "state": {},
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": ("192.0.2.1", 50000), "server": ("ximler.test", 80),
        }  # fmt: skip
        app: Any = self.client.app
        stream.answering = asyncio.create_task(app(scope, stream.receive, stream.send))
        try:
            await stream.until(lambda: bool(stream.status))
            yield stream
        finally:
            stream.leave.set()
            await stream.ended()


@pytest.fixture
async def editor(ada: Client) -> Editor:
    made = await ada.create(canvasData={"elements": [{"id": "a"}]})
    return Editor(ada, made["createProject"]["id"])


def _live(editor: Editor) -> live.Live:
    app: Any = editor.client.app
    return app._app.state.live  # type: ignore[no-any-return]  # the application inside `Requests`


async def test_each_revision_arrives_once_and_in_order(editor: Editor) -> None:
    await editor.save(set={"a": {"x": 0}})
    async with editor.stream(since=0) as stream, editor.stream(since=1) as late:
        assert stream.headers[b"content-type"].startswith(b"text/event-stream")
        for n in range(1, 6):
            await editor.save(set={"a": {"x": n}})
        await stream.until(lambda: len(stream.events) == 6)
        await late.until(lambda: len(late.events) == 5)
    assert [(kind, revision) for kind, revision, _ in stream.events] == [("patch", n) for n in range(1, 7)]
    assert stream.events[1] == ("patch", 2, {"revision": 2, "by": [["tab", 2]], "set": {"a": {"x": 1}}})
    assert late.events == stream.events[1:]
    async with editor.stream(last_event_id="4") as again:
        await again.until(lambda: len(again.events) == 2)
    assert again.events == stream.events[4:]
    assert _live(editor).followers == 0


@pytest.mark.slow
async def test_what_the_log_does_not_have_is_one_reload(editor: Editor) -> None:
    for n in range(LOGGED + 3):
        await editor.save(set={"a": {"x": n}})
    now = LOGGED + 3
    async with editor.stream(since=1) as behind, editor.stream() as current, editor.stream(since=999) as ahead:
        await behind.until(lambda: len(behind.events) == LOGGED)
        assert [event[:2] for event in behind.events[:2]] == [("reload", 4), ("patch", 5)]
        await editor.save(put=[{"id": "large", "text": "x" * 5000}])
        await editor.save(set={"a": {"x": -1}})
        put = await editor.client.http.put(
            editor.path, params={"base": now + 2}, json={}, headers={"Authorization": f"Bearer {editor.client.token}"}
        )
        assert put.json() == {"revision": now + 3}
        await current.until(lambda: bool(current.events) and current.events[-1][1] == now + 3)
        await ahead.until(lambda: bool(ahead.events) and ahead.events[-1][1] == now + 3)
    assert ahead.events[0][:2] == ("reload", now)
    assert {event[1] for event in current.events} <= {now + 1, now + 2, now + 3}
    assert current.events[-1][0] == "reload"


async def test_a_large_patch_is_an_event_of_the_process_that_saved_it_while_it_remembers(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with editor.stream(since=0) as stream:
        await editor.save(put=[{"id": "large", "text": "x" * 50_000}])
        await editor.save(set={"a": {"x": 1}})
        await stream.until(lambda: len(stream.events) == 2)
    assert [event[:2] for event in stream.events] == [("patch", 1), ("patch", 2)]
    assert stream.events[0][2]["put"] == [{"id": "large", "text": "x" * 50_000}]
    monkeypatch.setattr(edits, "MAX_RECENT", 70_000)
    await editor.save(put=[{"id": "larger", "text": "x" * 8000}])
    await editor.save(put=[{"id": "other", "text": "x" * 8000}])
    await editor.save(put=[{"id": "too large to be kept", "text": "x" * 9000}])
    async with editor.stream(since=0) as late:
        await late.until(lambda: bool(late.events) and late.events[-1][1] == 5)
        await editor.save(set={"a": {"x": 2}})
        await late.until(lambda: late.events[-1][1] == 6)
    assert [event[:2] for event in late.events] == [("reload", 5), ("patch", 6)]


@pytest.mark.parametrize("size", [0, bases.LIMIT], ids=["small", "large"])
async def test_followers_receive_patches_by_position(editor: Editor, size: int) -> None:
    await editor.change(0, "json", {"elements": [{"id": "a"}], "text": "x" * size})
    add = [{"op": "add", "path": "/elements/0", "value": {"id": "b"}}]
    by_path = [{"op": "add", "path": "/title", "value": "t"}]
    long = [{"op": "add", "path": "/elements/-", "value": {"id": "c", "text": "x" * 5000}}]
    async with editor.stream(since=1) as stream:
        await editor.save(set={"a": {"x": 1}})
        await editor.change(2, "json-patch+json", add)
        await editor.change(3, "merge-patch+json", {"title": None})
        await editor.change(4, "json-patch+json", by_path)
        await stream.until(lambda: len(stream.events) == 4)
        await editor.change(5, "json-patch+json", long)
        await stream.until(lambda: len(stream.events) == 5)
        await editor.save(set={"b": {"x": 2}})
        await stream.until(lambda: len(stream.events) == 6)
    assert stream.events == [
        ("patch", 2, {"revision": 2, "by": [["tab", 1]], "set": {"a": {"x": 1}}}),
        ("json-patch", 3, {"revision": 3, "patch": add}),
        ("merge-patch", 4, {"revision": 4, "merge": {"title": None}}),
        ("json-patch", 5, {"revision": 5, "patch": by_path}),
        ("reload", 6, {"revision": 6}),
        ("patch", 7, {"revision": 7, "by": [["tab", 2]], "set": {"b": {"x": 2}}}),
    ]
    async with editor.stream(since=2) as late, editor.stream(since=5) as later:
        await late.until(lambda: len(late.events) == 2)
        await later.until(lambda: len(later.events) == 2)
    assert late.events == later.events == stream.events[4:]  # a reload is of the latest revision that it stands for
    await editor.change(7, "json", {})
    async with editor.stream(since=6) as last:
        await last.until(lambda: bool(last.events))
    assert last.events == [("reload", 8, {"revision": 8})]


@pytest.mark.slow
async def test_a_stream_ends_with_its_access(editor: Editor, ada: Client) -> None:
    other = Client(ada.app)
    await other.sign_in("ada@example.com")
    key = (
        await ada.ask(
            'mutation { createApiKey(input: {name: "k", permissions: ["projects:read"]}) { secret key { id } } }'
        )
    )["createApiKey"]
    async with editor.stream(token=other.token) as of_session, editor.stream(token=key["secret"]) as of_key:
        await other.ask("mutation { signOut }")
        await ada.ask("mutation ($id: ID!) { revokeApiKey(id: $id) { id } }", id=key["key"]["id"])
        began = asyncio.get_running_loop().time()
        await asyncio.gather(of_session.ended(), of_key.ended())
        assert asyncio.get_running_loop().time() - began < 5  # a second, beside busy processors
    async with editor.stream() as stream:
        await ada.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=editor.project)
        await stream.ended()
    async with editor.stream() as gone:
        assert gone.status == 404
    await other.http.aclose()
    assert _live(editor).followers == 0


@pytest.mark.slow
async def test_streams_of_a_user_are_limited_and_leave_nothing_behind(editor: Editor) -> None:
    opened = [editor.stream() for _ in range(MAX_STREAMS)]
    streams = [await each.__aenter__() for each in opened]
    await asyncio.gather(*(each.until(lambda: _live(editor).followers == len(opened)) for each in streams[:1]))
    async with editor.stream() as refused:
        assert refused.status == 429
    tasks = len(asyncio.all_tasks())
    for each in opened:
        await each.__aexit__(None, None, None)
    state = _live(editor)
    assert (state.followers, state._followers, len(state._streams)) == (0, {}, 0)
    assert len(asyncio.all_tasks()) < tasks
    async with editor.stream(method="HEAD") as head:
        assert head.status == 200
    async with editor.stream(last_event_id="x") as wrong:
        assert wrong.status == 400


@pytest.mark.slow
async def test_a_silent_stream_pings(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ximler.core.streams.PING_S", 0.1)
    async with editor.stream() as stream:
        await stream.until(lambda: stream.pings > 1)


@pytest.mark.slow
async def test_followers_end_when_the_process_stops(editor: Editor) -> None:
    state, stop = _live(editor), asyncio.Event()
    stopping = asyncio.create_task(state._streams.run(stop))
    async with editor.stream() as stream:
        await stream.until(lambda: state.followers == 1)
        stop.set()
        await stopping
        await stream.ended()
        async with editor.stream() as late:
            assert late.status == 503
    state._streams._stopped = False  # the application of the other tests


def test_a_slow_follower_has_a_bounded_queue() -> None:
    held = InFlight(3 * live._MAX_BYTES // 2)
    follower = live.Follower(ObjectId(), ObjectId(), held)
    follower.begin(0, live._Logged(), Recent())
    for revision in range(1, 1000):
        follower.add(live.Event(revision, b"{}"))
    assert len(follower._events) <= live._MAX_EVENTS
    for revision in range(1000, 1010):
        follower.add(live.Event(revision, b"x" * 200_000))
    assert sum(len(event.patch or b"") for event in follower._events) <= live._MAX_BYTES
    assert held.all == follower._bytes
    other = live.Follower(ObjectId(), ObjectId(), held)
    other.begin(0, live._Logged(), Recent())
    for revision in range(1, 100):
        other.add(live.Event(revision, b"x" * 10_000))
        follower.add(live.Event(follower._at + 1, b"x" * 10_000))
        assert held.all == follower._bytes + other._bytes <= held.most
    assert None in [event.patch for event in (*other._events, *follower._events)]
    follower.forget()
    other.forget()
    assert held.all == 0
