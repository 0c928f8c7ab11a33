"""The connection to Valkey on the event loop that `ximler up` uses."""

import asyncio
import math

import uvloop

from ximler.database.valkey import Script, Valkey

_ECHO = Script("return {ARGV[1]}")


def test_a_server_that_hangs_up_at_any_moment_is_no_error() -> None:
    async def run() -> None:
        delays = iter(range(1000))

        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asyncio.get_running_loop().call_later(next(delays) % 10 * 2e-4, writer.transport.abort)

        listening = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        valkey = Valkey(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}", prefix="test")
        for _ in range(200):
            valkey._asked_at = -math.inf
            assert await valkey.ask(_ECHO, [], []) is None
        assert valkey.failing
        await valkey.close()
        listening.close()

    uvloop.run(run())
