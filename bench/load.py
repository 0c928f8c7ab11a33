"""Load over HTTP: many connections that each ask, wait for the whole answer, and ask again."""

import asyncio
import time

from bench.contest import percentile

__all__ = ["Burst", "burst"]


_LONGEST_S = 120


class Burst:
    """Durations of a run of requests: in total and of each request, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.latencies: list[float] = []

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p99(self) -> float:
        return percentile(self.latencies, 99)


class _Connection(asyncio.Protocol):
    """Answers are known by how they begin and end, so that reading one costs next to nothing."""

    def __init__(self, request: bytes, ends: bytes, run: Burst, left: list[int]) -> None:
        self._request, self._ends, self._run, self._left = request, ends, run, left
        self._received = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's, and uvloop's is no subclass
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(self._ends):
            return
        self._run.latencies.append(time.perf_counter() - self._asked)
        if not self._received.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(AssertionError(self._received[:300]))
            self._transport.close()
            return
        self._received = b""
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("closed before the answer"))

    def _ask(self) -> None:
        if self._left[0] <= 0:
            self.done.set_result(None)
            self._transport.close()
            return
        self._left[0] -= 1
        self._asked = time.perf_counter()
        self._transport.write(self._request)


async def burst(port: int, request: bytes, *, ends: bytes, requests: int, connections: int = 32) -> Burst:
    """Send the request that often, over so many connections.
    AssertionError shows an answer that is not 200."""
    loop = asyncio.get_running_loop()
    run, left = Burst(), [requests]
    began = time.perf_counter()
    made = [
        await loop.create_connection(lambda: _Connection(request, ends, run, left), "127.0.0.1", port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(_LONGEST_S):
        await asyncio.gather(*(protocol.done for _, protocol in made))
    run.seconds = time.perf_counter() - began
    return run
