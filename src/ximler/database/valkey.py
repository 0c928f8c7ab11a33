"""The connection to Valkey or Redis (`VALKEY_URL`), which holds only values that may be lost:
burst limits and results.

A process asks by scripts. An answer takes at most 50 ms; after a failure Valkey is not asked for a second,
and then by one caller only. `None` in place of an answer means that Valkey is not to be relied on now:
callers decide without it.
"""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from time import monotonic
from typing import Any

import structlog

__all__ = ["TIMEOUT_S", "Script", "Valkey"]

TIMEOUT_S = 0.05
_PAUSE_S = 1.0  # after a failure
_log = structlog.get_logger("ximler.database")


class Script:
    """A script in Lua. `ARGV[1]` is a number, which its answer, a list, begins with."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.name = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Valkey:
    """One per process. Keys begin with `prefix`."""

    def __init__(self, url: str, *, prefix: str) -> None:
        # 60 ms, which processes without Valkey do not pay.
        from valkey import asyncio as library
        from valkey.asyncio.retry import Retry
        from valkey.backoff import NoBackoff
        from valkey.exceptions import ConnectionError as ClosedError
        from valkey.exceptions import NoScriptError, ValkeyError

        self.prefix = prefix
        # RuntimeError: uvloop, of a connection that was closed a moment ago.
        self._failures = (ValkeyError, OSError, TimeoutError, RuntimeError, ValueError)
        # Without time-outs of its own, which cost 10 % of a call: `ask` has one over all of it.
        self._client = library.Valkey.from_url(url, retry=Retry(NoBackoff(), 0))
        # Scripts do not take the client's own way, which costs 1.5 times the processor time: it polls each
        # idle connection for whether it was closed. Here a command finds that out.
        self._idle: list[Any] = []
        self._unknown = NoScriptError
        self._closed = (ClosedError, OSError, RuntimeError)
        self._number = 0
        self._asked_at = -math.inf  # the last time after a failure
        self._failing = False

    @property
    def failing(self) -> bool:
        """Whether the last answer did not come."""
        return self._failing

    async def ask(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> list[Any] | None:
        """The script's answer without its number; None if Valkey is not to be asked, or does not answer."""
        if self._failing:
            now = monotonic()
            if now - self._asked_at < _PAUSE_S:
                return None
            self._asked_at = now  # of the callers that wait, only this one asks
        self._number += 1
        number = self._number
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._answer(script, len(keys), [*keys, number, *args], number)
        except self._failures as error:
            self._failed(error)
            await self._forget()
            return None
        if self._failing:
            self._failing = False
            _log.info("Valkey answers again")
        return answer[1:]

    async def server(self) -> dict[str, Any] | None:
        """The server's description of itself (`INFO`). None if it does not answer."""
        try:
            async with asyncio.timeout(1):
                found: dict[str, Any] = await self._client.info()
        except self._failures:
            return None
        return found

    async def close(self) -> None:
        await self._forget()
        await self._client.aclose()

    async def _answer(self, script: Script, count: int, arguments: list[Any], number: int) -> list[Any]:
        if self._idle:
            try:
                return await self._run(self._idle.pop(), script, count, arguments, number)
            except self._closed:  # since its last answer, as Valkey does after its own `timeout`
                await self._forget()
        return await self._run(self._client.connection_pool.make_connection(), script, count, arguments, number)

    async def _run(self, connection: Any, script: Script, count: int, arguments: list[Any], number: int) -> list[Any]:
        try:
            await connection.send_command("EVALSHA", script.name, count, *arguments)
            try:
                answer: list[Any] = await connection.read_response()
            except self._unknown:
                await connection.send_command("EVAL", script.source, count, *arguments)
                answer = await connection.read_response()
            if int(answer[0]) != number:  # to a caller that gave up
                raise ValueError("an answer to another request")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return answer

    async def _forget(self) -> None:
        idle, self._idle = self._idle, []
        for each in idle:
            await each.disconnect(nowait=True)

    def _failed(self, error: Exception) -> None:
        self._asked_at = monotonic()
        if not self._failing:
            self._failing = True
            remedy = "burst limits are divided by the number of processes, and results computed, until it answers"
            _log.warning("Valkey does not answer", reason=str(error) or type(error).__name__, remedy=remedy)
