"""The connection to Valkey or Redis (`VALKEY_URL`), which holds only values that may be lost:
burst limits and results.

A process asks by scripts. An answer takes at most 50 ms; after a failure Valkey is not asked for a second,
and then by one caller only. `None` in place of an answer means that Valkey is not to be relied on now:
callers decide without it.
"""

import asyncio
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


class Valkey:
    """One per process. Keys begin with `prefix`."""

    def __init__(self, url: str, *, prefix: str) -> None:
        # 60 ms, which processes without Valkey do not pay.
        from valkey import asyncio as library
        from valkey.asyncio.retry import Retry
        from valkey.backoff import NoBackoff
        from valkey.exceptions import ValkeyError

        self.prefix = prefix
        # RuntimeError: uvloop, of a connection that was closed a moment ago.
        self._failures = (ValkeyError, OSError, TimeoutError, RuntimeError)
        # Without time-outs of its own, which cost 10 % of a call: `ask` has one over all of it.
        self._client = library.Valkey.from_url(url, retry=Retry(NoBackoff(), 0))
        self._scripts: dict[Script, Any] = {}
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
        run = self._scripts.get(script)
        if run is None:
            run = self._scripts[script] = self._client.register_script(script.source)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer: list[Any] = await run(keys=keys, args=[number, *args])
            if int(answer[0]) != number:  # to a caller that gave up
                await self._client.connection_pool.disconnect()
                self._failed(ValueError("an answer to another request"))
                return None
        except self._failures as error:
            self._failed(error)
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
        await self._client.aclose()

    def _failed(self, error: Exception) -> None:
        self._asked_at = monotonic()
        if not self._failing:
            self._failing = True
            remedy = "burst limits are divided by the number of processes, and results computed, until it answers"
            _log.warning("Valkey does not answer", reason=str(error) or type(error).__name__, remedy=remedy)
