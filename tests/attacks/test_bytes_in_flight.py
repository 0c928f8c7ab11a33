"""Stalled bodies and unread exports hold a bounded number of bytes, and do not block sign-in."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from litestar.types import ASGIApp
from tests.serving import Client

from ximler.core import in_flight
from ximler.core.in_flight import InFlight, Overloaded

_PLANS = {"query": "{ plans { id } }"}
_MB = 1_000_000


@pytest.fixture
def held(app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> InFlight:
    budget: InFlight = app.in_flight  # type: ignore[attr-defined]  # of `Requests`
    monkeypatch.setattr(budget, "most", 4 * _MB)
    return budget


async def stalled(end: asyncio.Event, size: int) -> AsyncIterator[bytes]:
    yield b"{" + b" " * (size - 1)
    await end.wait()


@pytest.mark.parametrize("path", ["/graphql", "/v1/avatar"])
async def test_bodies_that_stall_hold_a_bounded_number_of_bytes(
    client: Client, ada: Client, held: InFlight, path: str
) -> None:
    anonymous = path == "/graphql"
    method = "POST" if anonymous else "PUT"
    headers = {"Content-Type": "application/json"} | ({} if anonymous else {"Authorization": f"Bearer {ada.token}"})
    end = asyncio.Event()
    sent = [
        asyncio.ensure_future(client.http.request(method, path, content=stalled(end, 600_000), headers=headers))
        for _ in range(10)
    ]
    fit = 3 if anonymous else 6
    done, waiting = await asyncio.wait(sent, timeout=2)
    while len(waiting) > fit:
        done, waiting = await asyncio.wait(sent, timeout=1)
    assert len(waiting) == fit
    refused = [each.result() for each in done]
    assert {(each.status_code, each.headers["retry-after"], each.headers["connection"]) for each in refused} == {
        (503, "5", "close")
    }
    assert held.all == fit * 600_000
    assert (await client.http.post("/graphql", json=_PLANS)).status_code == 200  # small ones are answered
    end.set()
    await asyncio.gather(*waiting)
    assert held.all == held.strangers == 0


async def test_an_account_exports_once_at_a_time_and_exports_hold_bytes(
    ada: Client, held: InFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "most", in_flight.EXPORT)
    path = f"/v1/projects/{(await ada.create('P'))['createProject']['id']}/export"
    reads = asyncio.Event()
    begun = asyncio.Event()

    async def receive() -> Any:
        await reads.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            begun.set()
            await reads.wait()

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
        "http_version": "1.1", "client": ("192.0.2.1", 1), "server": ("ximler.test", 80), "root_path": "", "state": {},
        "asgi": {"version": "3.0"}, "extensions": {},
        "headers": [(b"host", b"ximler.test"), (b"authorization", f"Bearer {ada.token}".encode())],
    }  # fmt: skip
    unread = asyncio.ensure_future(ada.app(scope, receive, send))  # type: ignore[arg-type]  # typed by two libraries
    await asyncio.wait_for(begun.wait(), 10)
    assert held.all == in_flight.EXPORT
    mine = {"Authorization": f"Bearer {ada.token}"}
    for again in (path, "/v1/export"):
        assert (await ada.http.get(again, headers=mine)).status_code == 429
    reads.set()
    await unread
    assert held.all == 0
    monkeypatch.setattr(held, "most", in_flight.EXPORT - 1)
    assert (await ada.http.get(path, headers=mine)).status_code == 503
    assert held.all == 0


def test_strangers_leave_half_to_accounts() -> None:
    held = InFlight(10)
    state: dict[str, Any] = {}
    held.enter(state)
    in_flight.hold(state, 5, known=False)
    with pytest.raises(Overloaded):
        in_flight.hold(state, 1, known=False)
    in_flight.hold(state, 5, known=True)
    with pytest.raises(Overloaded):
        in_flight.hold(state, 1, known=True)
    held.leave(state)
    assert (held.all, held.strangers) == (0, 0)


class _Slow:
    def __init__(self, pace: float) -> None:
        self.pace, self.dropped = pace, False

    def drop(self) -> None:
        self.dropped = True


def test_slow_readers_make_room_slowest_first_and_strangers_not_for_accounts_bytes() -> None:
    held = InFlight(10 * _MB)
    slow, slower, fast, stranger = _Slow(10), _Slow(5), _Slow(1e6), _Slow(1)
    for reader in (slow, slower, fast):
        held.wait(reader, 2 * _MB, known=True)
    held.wait(stranger, 4 * _MB, known=False)
    assert held.take(4 * _MB, known=False)
    assert (stranger.dropped, slow.dropped, slower.dropped, fast.dropped) == (True, False, False, False)
    held.give(4 * _MB, known=False)
    assert held.take(6 * _MB, known=True)
    assert (slow.dropped, slower.dropped, fast.dropped) == (False, True, False)
    late = _Slow(1e6)
    held.wait(late, 5 * _MB, known=True)
    assert (slow.dropped, fast.dropped, late.dropped) == (True, False, True)
    held.give(6 * _MB, known=True)
    held.taken(fast)
    assert (held.all, held.strangers) == (0, 0)


_PEAK = """
import io, resource, sys
from PIL import Image
from ximler.accounts import pictures
from ximler.core.errors import Invalid

kind, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rows = Image.new("RGB", (width, height))
out = io.BytesIO()
rows.save(out, kind, **({"progressive": True, "subsampling": 0} if kind == "JPEG" else {"method": 0}))
del rows
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) // 1000
before = status("VmRSS")
try:
    pictures._encode(out.getvalue(), "avatar")
except Invalid:
    pass
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "width", "height", "most_mb"),
    [("WEBP", 4000, 3000, 300), ("WEBP", 6000, 5000, 30), ("JPEG", 4000, 3000, 120), ("JPEG", 6000, 5000, 30)],
)
def test_a_picture_takes_bounded_memory(kind: str, width: int, height: int, most_mb: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK, kind, str(width), str(height)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < most_mb


async def test_large_bodies_of_strangers_take_turns_and_others_do_not_wait(
    client: Client, ada: Client, app: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other routes that are open to strangers take no large bodies."""
    budget: InFlight = app.in_flight  # type: ignore[attr-defined]  # of `Requests`
    waits: list[int] = []

    async def turn(size: int) -> None:
        waits.append(size)

    monkeypatch.setattr(budget, "turn", turn)
    large = b'{"query": "{ plans { id } }", "email": "%b"}' % (b"a" * 600_000)
    kind = {"Content-Type": "application/json"}
    await client.http.post("/graphql", content=large, headers=kind)
    await client.http.post("/graphql", content=large, headers=kind | {"Authorization": f"Bearer {'x' * 43}"})
    assert waits in ([len(large)] * 2, [len(large)])  # an unknown token may be refused before the body is parsed
    waits.clear()
    await client.http.post("/graphql", json=_PLANS)
    await ada.http.post("/graphql", content=large, headers=kind | {"Authorization": f"Bearer {ada.token}"})
    assert waits == []


async def test_a_turn_lasts_as_long_as_its_body_is_large() -> None:
    budget = InFlight(_MB)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(budget.turn(_MB // 10) for _ in range(11)))
    assert loop.time() - began >= 0.1 - 0.002
    assert budget._next_turn - began < 0.12
